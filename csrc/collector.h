// The candidates of both ends of a view, collected by several threads in one pass.
//
// 1. A sample guesses a bound that more than k elements reach. A guess that fewer reach costs another pass.
// 2. Threads take blocks and scan them. A bound that one of them has proven is shared with the others.
// 3. The lists of the threads are merged in the order of the indices, so that the rest is the same for any number of
// them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "parallel.h"
#include "reader.h"
#include "scanner.h"

namespace neuronllm {

// The greatest score that any thread has proven k elements to reach. For the others it is no strict bound: an element
// that ties with it may have a lower index.
template <typename Raw>
class SharedBound {
   public:
    explicit SharedBound(Key<Raw> bound) : bound_(bound) {}
    Key<Raw> get() const { return bound_.load(std::memory_order_relaxed); }
    void raise(Key<Raw> bound) {
        Key<Raw> seen = get();
        while (bound > seen && !bound_.compare_exchange_weak(seen, bound, std::memory_order_relaxed)) {
        }
    }

   private:
    std::atomic<Key<Raw>> bound_;
};

template <typename Raw>
class Collector {
   public:
    using Score = Key<Raw>;

    // Counts are at most n, the number of elements of the views to come.
    Collector(const Loops<Raw>& loops, Score infinity, std::size_t largest, std::size_t smallest, std::size_t n,
              int threads)
        : infinity_(infinity), largest_(largest), smallest_(smallest) {
        for (int i = 0; i < std::max(threads, 1); ++i) {
            scanners_.push_back(std::make_unique<Scanner<Raw>>(loops, infinity, largest, smallest, n));
        }
    }

    Scanner<Raw>& scanner(std::size_t i) { return *scanners_[i]; }
    std::size_t n_nan() const { return n_nan_; }

    // Elements of the view that may be among the best; those below the floors are known not to be wanted. The scores of
    // `floors` are for the largest and for the smallest.
    void collect(const View& view, std::int64_t base, Score largest_floor, Score smallest_floor,
                 const Options& options) {
        const std::size_t n = static_cast<std::size_t>(view.n);
        const std::size_t wanted = static_cast<std::size_t>(std::sqrt(static_cast<double>(n) / 5));
        Sample<Raw> sample(view, std::min<std::size_t>(std::max<std::size_t>(wanted, 64), 8192), infinity_);
        for (double widening = 1;; widening *= 8) {
            const bool last = widening > 64 || sample.is_empty();
            const Score largest_bound = last ? largest_floor : guess(sample, largest_, 0, widening, largest_floor);
            const Score smallest_bound = last ? smallest_floor : guess(sample, smallest_, -1, widening, smallest_floor);
            pass(view, base, largest_bound, smallest_bound, options);
            const std::size_t valid = n - n_nan_;
            const bool missed = (largest_bound > largest_floor && count(true) < std::min(largest_, valid)) ||
                                (smallest_bound > smallest_floor && count(false) < std::min(smallest_, valid));
            if (!missed) return;
        }
    }

    // All candidates of an end in the order of their indices, not yet cut. They belong to the collector.
    Candidates<Raw>& merged(bool largest) {
        if (scanners_.size() == 1) return end_of(0, largest);
        std::unique_ptr<Candidates<Raw>>& merged = largest ? merged_largest_ : merged_smallest_;
        merged = std::make_unique<Candidates<Raw>>(largest, largest ? largest_ : smallest_, 0, infinity_);
        merged->grow(count(largest));
        std::vector<std::size_t> heads(scanners_.size(), 0);
        for (;;) {
            // The list with the lowest index is copied up to the lowest index of the others: mostly a block's
            // candidates.
            std::size_t first = scanners_.size();
            std::int64_t lowest = INT64_MAX, limit = INT64_MAX;
            for (std::size_t i = 0; i < scanners_.size(); ++i) {
                const Candidates<Raw>& list = end_of(i, largest);
                if (heads[i] == list.size()) continue;
                const std::int64_t index = list.indices()[heads[i]];
                if (index < lowest) {
                    limit = lowest;
                    lowest = index;
                    first = i;
                } else {
                    limit = std::min(limit, index);
                }
            }
            if (first == scanners_.size()) return *merged;
            const Candidates<Raw>& list = end_of(first, largest);
            const std::int64_t* begin = list.indices() + heads[first];
            const std::int64_t* end = list.indices() + list.size();
            const std::int64_t* stop = limit == INT64_MAX ? end : std::lower_bound(begin, end, limit);
            const std::size_t size = static_cast<std::size_t>(stop - begin);
            merged->append_run(list.values() + heads[first], begin, size);
            heads[first] += size;
        }
    }

   private:
    Candidates<Raw>& end_of(std::size_t i, bool largest) {
        return largest ? scanners_[i]->largest : scanners_[i]->smallest;
    }

    std::size_t count(bool largest) {
        std::size_t total = 0;
        for (std::size_t i = 0; i < scanners_.size(); ++i) total += end_of(i, largest).size();
        return total;
    }

    // A bound that k elements and some reach: too low, it only lets more candidates through, too high, it costs a pass.
    // The rank in the sample is the expected one, three standard deviations and some, first as if all neighbours were
    // alike, then as alike as those that reach this first bound are.
    Score guess(Sample<Raw>& sample, std::size_t k, Score flip, double widening, Score floor) {
        if (k == 0) return floor;
        const double expected = sample.expected(k);
        const auto at = [&](double clustering) {
            const double enough = expected + 3 * std::sqrt(clustering * (expected + clustering)) + 3 * clustering;
            return sample.score_at(enough * widening, flip, floor);
        };
        const Score first = at(Sample<Raw>::kLine);
        return std::max(floor, at(sample.clustering(first, flip)));
    }

    void pass(const View& view, std::int64_t base, Score largest_bound, Score smallest_bound, const Options& options) {
        const std::size_t n = static_cast<std::size_t>(view.n);
        const std::size_t block_size = std::max(options.block_bytes / sizeof(Raw), kGroup<Raw>);
        const std::size_t n_blocks = (n + block_size - 1) / block_size;
        SharedBound<Raw> best_largest(largest_bound), best_smallest(smallest_bound);
        std::vector<Reader<Raw>> readers;
        for (auto& scanner : scanners_) {
            scanner->restart(largest_bound, smallest_bound);
            readers.emplace_back(view);
        }
        const int threads = static_cast<int>(scanners_.size());
        for_each_block(n_blocks, threads, options.check, [&](int thread, std::size_t block) {
            const std::size_t t = static_cast<std::size_t>(thread), first = block * block_size;
            Scanner<Raw>& scanner = *scanners_[t];
            scanner.largest.raise(best_largest.get());
            scanner.smallest.raise(best_smallest.get());
            scanner.scan(readers[t], first, std::min(block_size, n - first), base);
            best_largest.raise(scanner.largest.proven());
            best_smallest.raise(scanner.smallest.proven());
        });
        n_nan_ = 0;
        for (auto& scanner : scanners_) n_nan_ += scanner->n_nan;
    }

    Score infinity_;
    std::size_t largest_, smallest_, n_nan_ = 0;
    std::vector<std::unique_ptr<Scanner<Raw>>> scanners_;
    std::unique_ptr<Candidates<Raw>> merged_largest_, merged_smallest_;
};

}  // namespace neuronllm
