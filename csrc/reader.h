// A view as contiguous chunks of bits, and a random sample of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "buffer.h"
#include "keys.h"
#include "loops.h"
#include "rank.h"
#include "select.h"

namespace neuronllm {

template <typename Raw>
class Reader {
   public:
    explicit Reader(const View& view)
        : data_(static_cast<const char*>(view.data)),
          stride_(view.stride),
          is_direct_(view.stride == sizeof(Raw) && reinterpret_cast<std::uintptr_t>(view.data) % alignof(Raw) == 0) {}

    bool is_direct() const { return is_direct_; }

    // Elements [first, first + n), n at most kChunk: where they are, or gathered. Valid until the next call.
    const Raw* chunk(std::size_t first, std::size_t n) {
        const char* data = data_ + static_cast<std::int64_t>(first) * stride_;
        if (is_direct_) return reinterpret_cast<const Raw*>(data);
        gathered_.reserve(kChunk);
        for (std::size_t i = 0; i < n; ++i, data += stride_) std::memcpy(gathered_.data() + i, data, sizeof(Raw));
        return gathered_.data();
    }

   private:
    const char* data_;
    std::int64_t stride_;
    bool is_direct_;
    Buffer<Raw> gathered_;
};

// Keys of random cache lines. What a rank in the sample says about a rank in the whole is reckoned in lines, not in
// elements: neighbours may well be alike, as in sorted data.
template <typename Raw>
class Sample {
   public:
    static constexpr std::size_t kLine = 64 / sizeof(Raw);

    Sample(const View& view, std::size_t max_lines, Key<Raw> infinity) : n_(static_cast<std::size_t>(view.n)) {
        const std::size_t all = n_ / kLine;
        lines_ = std::min(max_lines, all / 8);
        if (lines_ < 16) lines_ = 0;  // too small to be worth it
        keys_.reserve(lines_ * kLine);
        scratch_.reserve(lines_ * kLine);
        Reader<Raw> reader(view);
        for (std::size_t i = 0; i < lines_; ++i) {
            if (reader.is_direct() && i + 16 < lines_) __builtin_prefetch(reader.chunk(place(i + 16, all), kLine));
            const Raw* line = reader.chunk(place(i, all), kLine);
            for (std::size_t j = 0; j < kLine; ++j) {
                keys_[size_] = key_of(line[j]);
                size_ += !is_nan(line[j], infinity);
            }
        }
    }

    bool is_empty() const { return lines_ == 0; }

    // The expected number of sampled lines that hold the k best, were they side by side.
    double lines_of(std::size_t k) const {
        return static_cast<double>(k) / static_cast<double>(n_) * static_cast<double>(lines_);
    }
    std::size_t lines() const { return lines_; }

    // The score so many lines from the best one; `otherwise` where the sample does not reach so far.
    Key<Raw> score_at(double lines, Key<Raw> flip, Key<Raw> otherwise) {
        const double rank = std::ceil(lines * static_cast<double>(kLine));
        if (!(rank >= 1) || rank > static_cast<double>(size_)) return otherwise;
        for (std::size_t i = 0; i < size_; ++i) scratch_[i] = static_cast<Key<Raw>>(keys_[i] ^ flip);
        return kth_greatest(scratch_.data(), size_, static_cast<std::size_t>(rank));
    }

   private:
    // Always the same places for the same size: the time of a call does not depend on chance, and its result never
    // does.
    static std::size_t place(std::size_t i, std::size_t all) {
        std::uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;  // splitmix64
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        return static_cast<std::size_t>(z % all) * kLine;
    }

    std::size_t n_, lines_ = 0, size_ = 0;
    Buffer<Key<Raw>> keys_, scratch_;
};

}  // namespace neuronllm
