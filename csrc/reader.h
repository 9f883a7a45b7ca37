// A view as contiguous chunks of bits, and a random sample of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

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

// Keys of random cache lines.
template <typename Raw>
class Sample {
   public:
    using Score = Key<Raw>;
    static constexpr std::size_t kLine = 64 / sizeof(Raw);

    Sample(const View& view, std::size_t max_lines, Score infinity) : n_(static_cast<std::size_t>(view.n)) {
        const std::size_t all = n_ / kLine;
        lines_ = std::min(max_lines, all / 8);
        if (lines_ < 16) lines_ = 0;  // too small to be worth it
        keys_.reserve(lines_ * kLine);
        scores_.reserve(lines_ * kLine);
        Reader<Raw> reader(view);
        for (std::size_t i = 0; i < lines_; ++i) {
            if (reader.is_direct() && i + 16 < lines_) __builtin_prefetch(reader.chunk(place(i + 16, all), kLine));
            const Raw* line = reader.chunk(place(i, all), kLine);
            for (std::size_t j = 0; j < kLine; ++j) {
                const bool nan = is_nan(line[j], infinity);
                keys_[i * kLine + j] = nan ? kNan : key_of(line[j]);
                valid_ += !nan;
            }
        }
    }

    bool is_empty() const { return lines_ == 0; }
    double size() const { return static_cast<double>(lines_ * kLine); }

    // How many of the k best are expected in the sample.
    double expected(std::size_t k) const { return static_cast<double>(k) / static_cast<double>(n_) * size(); }

    // The score of a rank in the sample, counted from the best; `otherwise` where the sample does not reach so far.
    Score score_at(double rank, Score flip, Score otherwise) {
        const double whole = std::ceil(rank);
        if (!(whole >= 1) || whole > static_cast<double>(valid_)) return otherwise;
        const std::size_t size = lines_ * kLine;
        for (std::size_t i = 0; i < size; ++i) scores_[i] = score(keys_[i], flip);
        return kth_greatest(scores_.data(), size, static_cast<std::size_t>(whole));
    }

    // By how much the variance of the number of sampled scores that reach a bound exceeds that of single elements drawn
    // at random: 1 for elements that have nothing to do with their neighbours, kLine for those that are like them.
    double clustering(Score bound, Score flip) const {
        double sum = 0, squares = 0;
        for (std::size_t i = 0; i < lines_; ++i) {
            int count = 0;
            for (std::size_t j = 0; j < kLine; ++j) count += score(keys_[i * kLine + j], flip) >= bound;
            sum += count;
            squares += count * count;
        }
        return sum > 0 ? squares / sum : kLine;
    }

   private:
    static constexpr Score kNan = -1;  // which is no key

    static Score score(Score key, Score flip) {
        return key == kNan ? std::numeric_limits<Score>::min() : static_cast<Score>(key ^ flip);
    }

    // Always the same places for the same size: the time of a call does not depend on chance, and its result never
    // does.
    static std::size_t place(std::size_t i, std::size_t all) {
        std::uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;  // splitmix64
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        return static_cast<std::size_t>(z % all) * kLine;
    }

    std::size_t n_, lines_ = 0, valid_ = 0;
    Buffer<Score> keys_, scores_;
};

}  // namespace neuronllm
