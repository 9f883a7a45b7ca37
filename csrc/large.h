// Both ends where one of them is a large part of the array: lists of candidates would be as large as the array itself.
//
// 1. A sample brackets the k-th best score between two others.
// 2. A pass counts, block by block, what is above the bracket and keeps the scores inside it.
// 3. The k-th best of those is exact; from it and the counts follows what every block contributes, and where.
// 4. A second pass writes the elements straight to their places, in the order of the indices.
#pragma once

#include <cmath>
#include <vector>

#include "dtypes.h"
#include "parallel.h"
#include "reader.h"

namespace neuronllm {

template <typename Raw>
class LargeEnd {
   public:
    using Score = Key<Raw>;

    LargeEnd(bool largest, std::size_t k, Score infinity)
        : flip_(static_cast<Score>(largest ? 0 : -1)), k_(k), infinity_(infinity) {}

    std::size_t k() const { return k_; }
    // From this score on elements are looked at.
    Score bound() const { return k_ == 0 ? static_cast<Score>(infinity_ + 1) : lower_; }
    Score flip() const { return flip_; }

    // Four standard deviations and some to either side, as if all neighbours in memory were alike.
    void bracket(Sample<Raw>& sample) {
        lower_ = static_cast<Score>(~infinity_);
        upper_ = static_cast<Score>(infinity_ + 1);
        if (k_ == 0 || sample.is_empty()) return;
        const double expected = sample.expected(k_), share = expected / sample.size();
        const double margin = 4 * std::sqrt(expected * (1 - share) * sample.kLine) + 3 * sample.kLine;
        upper_ = sample.score_at(expected - margin, flip_, upper_);
        lower_ = sample.score_at(expected + margin, flip_, lower_);
    }
    void bracket_everything() {
        lower_ = static_cast<Score>(~infinity_);
        upper_ = static_cast<Score>(infinity_ + 1);
    }

    void start(std::size_t n_blocks, int threads) {
        above_.assign(n_blocks, 0);
        equal_.assign(n_blocks, 0);
        parts_ = std::vector<Part>(static_cast<std::size_t>(threads));
    }

    // Pass one: data[positions[i]] reach the lower edge.
    void count(int thread, std::size_t block, const Raw* data, const std::uint32_t* positions, std::size_t n) {
        Part& part = parts_[static_cast<std::size_t>(thread)];
        std::size_t above = 0;
        if (lower_ == upper_) {  // the score is known, only its ties are to be counted
            for (std::size_t i = 0; i < n; ++i) above += score_of(data[positions[i]], flip_) > upper_;
            equal_[block] += n - above;
        } else {
            part.scores.grow(part.size + n, part.size);
            std::size_t size = part.size;
            for (std::size_t i = 0; i < n; ++i) {
                const Score score = score_of(data[positions[i]], flip_);
                part.scores[size] = score;
                const bool is_above = score > upper_;
                above += is_above;
                size += !is_above;
            }
            if (part.runs.empty() || part.runs.back().block != block) part.runs.push_back({block, part.size});
            part.size = size;
        }
        above_[block] += above;
    }

    // The k-th best score, and what each block gives. False if the bracket does not hold it.
    bool locate(std::size_t n_valid) {
        wanted_ = std::min(k_, n_valid);
        values_.reserve(wanted_);
        indices_.reserve(wanted_);
        std::size_t above = 0, inside = 0;
        for (std::size_t count : above_) above += count;
        for (std::size_t count : equal_) inside += count;
        for (const Part& part : parts_) inside += part.size;
        if (wanted_ == 0) return true;
        if (above >= wanted_ || above + inside < wanted_) return false;
        if (lower_ != upper_) {
            Buffer<Score> all(inside);
            std::size_t size = 0;
            for (const Part& part : parts_) {
                if (part.size > 0) std::memcpy(all.data() + size, part.scores.data(), part.size * sizeof(Score));
                size += part.size;
            }
            lower_ = upper_ = kth_greatest(all.data(), size, wanted_ - above);
            for (const Part& part : parts_) part.count(lower_, above_, equal_);
        }
        std::size_t ties = wanted_;
        for (std::size_t count : above_) ties -= count;
        std::size_t place = 0;
        for (std::size_t block = 0; block < above_.size(); ++block) {
            equal_[block] = std::min(equal_[block], ties);
            ties -= equal_[block];
            const std::size_t size = above_[block] + equal_[block];
            above_[block] = place;  // from here on the next place of the block
            place += size;
        }
        parts_.clear();
        return true;
    }

    // Pass two: the same elements, and those above them; the first ties of a block go along as far as they are wanted.
    void emit(std::size_t block, const Raw* data, const std::uint32_t* positions, std::size_t n, std::int64_t base) {
        if (wanted_ == 0) return;
        std::size_t place = above_[block], ties = equal_[block];
        for (std::size_t i = 0; i < n; ++i) {
            const Raw bits = data[positions[i]];
            if (score_of(bits, flip_) == lower_) {
                if (ties == 0) continue;
                --ties;
            }
            values_[place] = bits;
            indices_[place++] = base + positions[i];
        }
        above_[block] = place;
        equal_[block] = ties;
    }

    Selected take(bool sorted, const Check& check) {
        Selected selected{Buffer<unsigned char>(wanted_ * sizeof(Raw)), Buffer<std::int64_t>(), wanted_};
        Raw* values = reinterpret_cast<Raw*>(selected.values.data());
        if (sorted) {
            selected.indices.reserve(wanted_);
            sort_by_score(values_.data(), indices_.data(), wanted_, flip_, check, values, selected.indices.data());
        } else {
            if (wanted_ > 0) std::memcpy(values, values_.data(), wanted_ * sizeof(Raw));
            selected.indices = std::move(indices_);
        }
        return selected;
    }

   private:
    struct Run {
        std::size_t block, begin;
    };
    struct Part {  // of a thread
        Buffer<Score> scores;
        std::size_t size = 0;
        std::vector<Run> runs;

        void count(Score exact, std::vector<std::size_t>& above, std::vector<std::size_t>& equal) const {
            for (std::size_t r = 0; r < runs.size(); ++r) {
                const std::size_t end = r + 1 < runs.size() ? runs[r + 1].begin : size;
                for (std::size_t i = runs[r].begin; i < end; ++i) {
                    above[runs[r].block] += scores[i] > exact;
                    equal[runs[r].block] += scores[i] == exact;
                }
            }
        }
    };

    Score flip_;
    std::size_t k_;
    Score infinity_, lower_ = 0, upper_ = 0;
    std::size_t wanted_ = 0;
    std::vector<std::size_t> above_, equal_;
    std::vector<Part> parts_;
    Buffer<Raw> values_;
    Buffer<std::int64_t> indices_;
};

template <typename Raw>
class LargeSelection {
   public:
    LargeSelection(const View& view, const Options& options, const Loops<Raw>& loops, Key<Raw> infinity)
        : largest(true, static_cast<std::size_t>(options.largest), infinity),
          smallest(false, static_cast<std::size_t>(options.smallest), infinity),
          view_(view),
          options_(options),
          loops_(loops),
          infinity_(infinity) {}

    LargeEnd<Raw> largest, smallest;

    // Returns the number of NaNs.
    std::size_t run() {
        const std::size_t n = static_cast<std::size_t>(view_.n);
        block_size_ = std::max(options_.block_bytes / sizeof(Raw), kChunk);
        n_blocks_ = (n + block_size_ - 1) / block_size_;
        Sample<Raw> sample(view_, 8192, infinity_);
        largest.bracket(sample);
        smallest.bracket(sample);
        std::size_t nan = count();
        if (!(largest.locate(n - nan) & smallest.locate(n - nan))) {  // a freak sample, or none at all
            largest.bracket_everything();
            smallest.bracket_everything();
            nan = count();
            largest.locate(n - nan);
            smallest.locate(n - nan);
        }
        pass([&](int, std::size_t block, const Raw* data, std::int64_t base, Classified found, const Positions& at) {
            largest.emit(block, data, at.high, found.high, base);
            smallest.emit(block, data, at.low, found.low, base);
        });
        return nan;
    }

   private:
    struct Positions {
        std::uint32_t high[kChunk + 64], low[kChunk + 64];
    };

    std::size_t count() {
        largest.start(n_blocks_, options_.threads);
        smallest.start(n_blocks_, options_.threads);
        std::atomic<std::size_t> nan{0};
        pass([&](int thread, std::size_t block, const Raw* data, std::int64_t, Classified found, const Positions& at) {
            largest.count(thread, block, data, at.high, found.high);
            smallest.count(thread, block, data, at.low, found.low);
            nan += found.nan;
        });
        return nan;
    }

    // Classifies every chunk against the bounds of the two ends.
    template <typename Take>
    void pass(const Take& take) {
        const std::size_t n = static_cast<std::size_t>(view_.n);
        const Bounds<Raw> bounds = Bounds<Raw>::of_keys(largest.bound(), static_cast<Key<Raw>>(~smallest.bound()));
        std::vector<Reader<Raw>> readers;
        for (int i = 0; i < options_.threads; ++i) readers.emplace_back(view_);
        std::vector<Positions> positions(static_cast<std::size_t>(options_.threads));
        for_each_block(n_blocks_, options_.threads, options_.check, [&](int thread, std::size_t block) {
            Reader<Raw>& reader = readers[static_cast<std::size_t>(thread)];
            Positions& at = positions[static_cast<std::size_t>(thread)];
            const std::size_t end = std::min(n, (block + 1) * block_size_);
            for (std::size_t i = block * block_size_; i < end; i += kChunk) {
                const std::size_t size = std::min(kChunk, end - i);
                const Raw* data = reader.chunk(i, size);
                const Classified found = loops_.classify(data, size, bounds, infinity_, at.high, at.low);
                take(thread, block, data, static_cast<std::int64_t>(i), found, at);
            }
        });
    }

    const View& view_;
    const Options& options_;
    const Loops<Raw>& loops_;
    Key<Raw> infinity_;
    std::size_t block_size_ = 0, n_blocks_ = 0;
};

}  // namespace neuronllm
