// The k-th greatest of an array of integers, and a stable sort: both linear, whatever the distribution.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <type_traits>

#include "buffer.h"
#include "keys.h"

namespace neuronllm {

inline int bit_width(std::uint64_t x) { return x == 0 ? 0 : 64 - __builtin_clzll(x); }

// The rank-th greatest (from 1) of scores[0, n), which are overwritten. A histogram over the range that is there, then
// the same inside the bin of the rank: at most one pass for every eleven bits, and none for values that are all equal.
template <typename Score>
Score kth_greatest(Score* scores, std::size_t n, std::size_t rank) {
    using Unsigned = std::make_unsigned_t<Score>;
    constexpr int kBinBits = 11;
    for (;;) {
        if (n <= 64) {
            std::nth_element(scores, scores + (rank - 1), scores + n, std::greater<Score>());
            return scores[rank - 1];
        }
        Score least = scores[0], greatest = scores[0];
        for (std::size_t i = 1; i < n; ++i) {
            least = std::min(least, scores[i]);
            greatest = std::max(greatest, scores[i]);
        }
        if (least == greatest) return least;
        const Unsigned origin = static_cast<Unsigned>(least);
        const int width = bit_width(static_cast<Unsigned>(static_cast<Unsigned>(greatest) - origin));
        const int shift = std::max(0, width - kBinBits);
        const auto bin_of = [=](Score score) {
            return static_cast<std::size_t>(static_cast<Unsigned>(static_cast<Unsigned>(score) - origin) >> shift);
        };
        std::size_t counts[1 << kBinBits] = {};
        for (std::size_t i = 0; i < n; ++i) ++counts[bin_of(scores[i])];
        std::size_t bin = bin_of(greatest);
        for (; rank > counts[bin]; --bin) rank -= counts[bin];
        if (shift == 0) return static_cast<Score>(origin + bin);
        std::size_t kept = 0;
        for (std::size_t i = 0; i < n; ++i) {
            const Score score = scores[i];
            scores[kept] = score;
            kept += bin_of(score) == bin;
        }
        n = kept;
    }
}

// What is sorted: a distance from the best score, ascending, and a position. Packed where both fit into 64 bits.
struct PackedEntry {
    std::uint64_t bits;
    static PackedEntry of(std::uint64_t distance, std::size_t at) { return {distance << 32 | at}; }
    std::uint64_t distance() const { return bits >> 32; }
    std::size_t at() const { return bits & 0xffffffffu; }
    bool operator<(PackedEntry other) const { return bits < other.bits; }
};
struct WideEntry {
    std::uint64_t far;
    std::size_t where;
    static WideEntry of(std::uint64_t distance, std::size_t at) { return {distance, at}; }
    std::uint64_t distance() const { return far; }
    std::size_t at() const { return where; }
    bool operator<(WideEntry other) const { return far != other.far ? far < other.far : where < other.where; }
};

// Sorts entries whose positions rise, by distances below 2^width; returns the sorted array, one of the two.
template <typename Entry>
Entry* radix_sort(Entry* entries, Entry* scratch, std::size_t n, int width, const std::function<void()>& check) {
    if (n <= 256) {
        std::sort(entries, entries + n);
        return entries;
    }
    const int widest = n < 4096 ? 8 : n < 1 << 17 ? 11 : 12, passes = (width + widest - 1) / widest;
    for (int pass = 0; pass < passes; ++pass) {
        check();
        const int digits = (width + passes - 1) / passes, shift = pass * digits;
        const std::uint64_t mask = (std::uint64_t{1} << digits) - 1;
        std::size_t places[1 << 12] = {};
        for (std::size_t i = 0; i < n; ++i) ++places[entries[i].distance() >> shift & mask];
        std::size_t total = 0;
        for (std::size_t& place : places) {
            const std::size_t count = place;
            place = total;
            total += count;
        }
        for (std::size_t i = 0; i < n; ++i) scratch[places[entries[i].distance() >> shift & mask]++] = entries[i];
        std::swap(entries, scratch);
    }
    return entries;
}

// Scores are keys, or for the smallest their complement: the greatest score is the best. `flip` is 0 or -1.
template <typename Raw>
Key<Raw> score_of(Raw bits, Key<Raw> flip) {
    return static_cast<Key<Raw>>(key_of(bits) ^ flip);
}

template <typename Raw, typename Entry>
void sort_entries(const Raw* values, const std::int64_t* indices, std::size_t n, Key<Raw> flip, Key<Raw> best,
                  int width, const std::function<void()>& check, Raw* out_values, std::int64_t* out_indices) {
    Buffer<Entry> entries(n), scratch(n > 256 ? n : 0);
    for (std::size_t i = 0; i < n; ++i) {
        const Key<Raw> score = score_of(values[i], flip);
        entries[i] = Entry::of(static_cast<Raw>(static_cast<Raw>(best) - static_cast<Raw>(score)), i);
    }
    const Entry* sorted = radix_sort(entries.data(), scratch.data(), n, width, check);
    for (std::size_t i = 0; i < n; ++i) {
        out_values[i] = values[sorted[i].at()];
        out_indices[i] = indices[sorted[i].at()];
    }
}

// By score from the best down; equal scores stay in the order they have.
template <typename Raw>
void sort_by_score(const Raw* values, const std::int64_t* indices, std::size_t n, Key<Raw> flip,
                   const std::function<void()>& check, Raw* out_values, std::int64_t* out_indices) {
    if (n == 0) return;
    Key<Raw> best = score_of(values[0], flip), worst = best;
    for (std::size_t i = 1; i < n; ++i) {
        const Key<Raw> score = score_of(values[i], flip);
        best = std::max(best, score);
        worst = std::min(worst, score);
    }
    const int width = bit_width(static_cast<Raw>(static_cast<Raw>(best) - static_cast<Raw>(worst)));
    if (sizeof(Raw) <= 4 && n <= 0xffffffffu) {
        sort_entries<Raw, PackedEntry>(values, indices, n, flip, best, width, check, out_values, out_indices);
    } else {
        sort_entries<Raw, WideEntry>(values, indices, n, flip, best, width, check, out_values, out_indices);
    }
}

}  // namespace neuronllm
