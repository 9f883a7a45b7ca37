// One thread's pass over memory: search for what reaches a bound, classify what was found, collect candidates.
//
// The search costs one and-max an element as long as the bounds lie on both sides of zero: the greatest |x| of a group
// against the nearer bound tells top, bottom and NaN apart from everything else in one comparison. Where it would find
// too much (one bound near zero), both bounds are compared; where a quarter of the groups hold something, they are all
// classified without a search.
#pragma once

#include <algorithm>

#include "candidates.h"
#include "loops.h"
#include "reader.h"

namespace neuronllm {

template <typename Raw>
class Scanner {
   public:
    Scanner(const Loops<Raw>& loops, Key<Raw> infinity, std::size_t largest, std::size_t smallest, std::size_t n)
        : largest(true, largest, n, infinity),
          smallest(false, smallest, n, infinity),
          loops_(loops),
          infinity_(infinity) {}

    Candidates<Raw> largest, smallest;
    std::size_t n_nan = 0;

    void restart(Key<Raw> largest_bound, Key<Raw> smallest_bound) {
        largest.restart(largest_bound);
        smallest.restart(smallest_bound);
        n_nan = 0;
        dense_ = false;
        in_vain_ = 0;
        by_magnitude_ = true;
    }

    // The elements [first, first + n) of what the reader reads; element i has the index base + i.
    void scan(Reader<Raw>& reader, std::size_t first, std::size_t n, std::int64_t base) {
        update();
        for (std::size_t i = first; i < first + n; i += kChunk) {
            const std::size_t size = std::min(kChunk, first + n - i);
            const Raw* data = reader.chunk(i, size);
            const std::int64_t at = base + static_cast<std::int64_t>(i);
            if (dense_) {
                dense_ = take(data, size, at) > size / kGroup<Raw> / 8;
            } else {
                search(data, size, at);
            }
        }
    }

    // Classifies data[0, n), n at most kChunk; returns how many elements were candidates or NaN.
    std::size_t take(const Raw* data, std::size_t n, std::int64_t base) {
        const Classified found = loops_.classify(data, n, bounds_, infinity_, high_, low_);
        if (found.high) largest.append(data, high_, found.high, base);
        if (found.low) smallest.append(data, low_, found.low, base);
        n_nan += found.nan;
        const bool cut_largest = found.high > 0 && largest.is_full(),
                   cut_smallest = found.low > 0 && smallest.is_full();
        if (cut_largest) largest.cut();
        if (cut_smallest) smallest.cut();
        if (cut_largest || cut_smallest) update();
        return found.high + found.low + found.nan;
    }

    // To be called when a bound was changed from outside.
    void update() {
        bounds_ = bounds_of(largest, smallest);
        magnitude_ = std::min(bounds_.high, static_cast<Key<Raw>>(~bounds_.low));
    }

   private:
    void search(const Raw* data, std::size_t n, std::int64_t base) {
        const std::size_t whole = n / kGroup<Raw> * kGroup<Raw>;
        std::size_t found = 0, in_vain = 0;
        for (std::size_t i = 0; i < whole; i += kGroup<Raw>) {
            // magnitude_ <= 0: the bounds are on one side of zero, where |x| says nothing.
            i += by_magnitude_ && magnitude_ > 0 ? loops_.find_beyond(data + i, whole - i, magnitude_)
                                                 : loops_.find_outside(data + i, whole - i, bounds_);
            if (i >= whole) break;
            ++found;
            in_vain += take(data + i, kGroup<Raw>, base + static_cast<std::int64_t>(i)) == 0;
        }
        if (whole < n) take(data + whole, n - whole, base + static_cast<std::int64_t>(whole));
        const std::size_t groups = whole / kGroup<Raw>;
        dense_ = found * 4 > groups;
        if (in_vain * 8 > groups) {
            dense_ = false;
            if (++in_vain_ > 4) by_magnitude_ = false;
        }
    }

    const Loops<Raw>& loops_;
    Key<Raw> infinity_;
    Bounds<Raw> bounds_{};
    Key<Raw> magnitude_ = 0;
    bool dense_ = false, by_magnitude_ = true;
    int in_vain_ = 0;
    std::uint32_t high_[kChunk + 64], low_[kChunk + 64];
};

}  // namespace neuronllm
