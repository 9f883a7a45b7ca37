// What may still be among the k best of one end: values and indices, in the order of the indices.
//
// Elements that reach the bound are appended. When the buffer is full, it is cut to the k best, which proves a bound
// for all that comes later. Because the order stays that of the indices, ties go to the lowest index by themselves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "buffer.h"
#include "loops.h"
#include "rank.h"

namespace neuronllm {

// Twice k so that a cut, which costs a few passes over the buffer, comes after at least k appended elements.
inline std::size_t candidate_room(std::size_t k, std::size_t n) {
    return k == 0 ? 0 : std::min(n, 2 * k + 10000) + kChunk;
}

template <typename Raw>
class Candidates {
   public:
    using Score = Key<Raw>;

    // infinity as a key; every element reaches the bound at first. `n` bounds what can ever come.
    Candidates(bool largest, std::size_t k, std::size_t n, Score infinity)
        : flip_(static_cast<Score>(largest ? 0 : -1)), k_(k), room_(candidate_room(k, n)), infinity_(infinity) {
        values_.reserve(room_);
        indices_.reserve(room_);
        restart(everything());
    }

    Score flip() const { return flip_; }
    std::size_t k() const { return k_; }
    std::size_t size() const { return size_; }
    Raw* values() const { return values_.data(); }
    std::int64_t* indices() const { return indices_.data(); }

    // The least score that is of interest. Nothing is for k = 0.
    Score bound() const { return bound_; }
    Score everything() const { return static_cast<Score>(~infinity_); }
    Score nothing() const { return static_cast<Score>(infinity_ + 1); }
    void raise(Score bound) {
        if (bound > bound_) bound_ = bound;
    }
    void restart(Score bound) {
        size_ = 0;
        bound_ = k_ == 0 ? nothing() : bound;
        proven_ = everything();
    }

    // A score that k elements are known to reach, those that were cut off included.
    Score proven() const { return proven_; }

    // data[positions[i]], of index base + positions[i].
    void append(const Raw* data, const std::uint32_t* positions, std::size_t n, std::int64_t base) {
        Raw* values = values_.data() + size_;
        std::int64_t* indices = indices_.data() + size_;
        for (std::size_t i = 0; i < n; ++i) {
            values[i] = data[positions[i]];
            indices[i] = base + positions[i];
        }
        size_ += n;
    }

    // A run of others' candidates, that lie behind all that are here.
    void append_run(const Raw* values, const std::int64_t* indices, std::size_t n) {
        grow(size_ + n);
        std::memcpy(values_.data() + size_, values, n * sizeof(Raw));
        std::memcpy(indices_.data() + size_, indices, n * sizeof(std::int64_t));
        size_ += n;
    }

    bool is_full() const { return size_ + kChunk > room_; }

    void grow(std::size_t room) {
        if (room <= room_) return;
        values_.grow(room, size_);
        indices_.grow(room, size_);
        room_ = room;
    }

    // Keeps the k best. From then on only what is better than the worst of them is of interest.
    void cut() {
        if (size_ <= k_) return;
        if (k_ == 0) return restart(nothing());
        scores_.reserve(size_);
        for (std::size_t i = 0; i < size_; ++i) scores_[i] = score_of(values_[i], flip_);
        const Score worst = kth_greatest(scores_.data(), size_, k_);
        std::size_t better = 0;
        for (std::size_t i = 0; i < size_; ++i) better += score_of(values_[i], flip_) > worst;
        std::size_t ties = k_ - better, kept = 0;
        for (std::size_t i = 0; i < size_; ++i) {
            const Score score = score_of(values_[i], flip_);
            const bool tie = score == worst && ties > 0;
            ties -= tie;
            values_[kept] = values_[i];
            indices_[kept] = indices_[i];
            kept += score > worst || tie;
        }
        size_ = kept;
        proven_ = std::max(proven_, worst);
        raise(static_cast<Score>(worst + 1));
    }

   private:
    Score flip_;
    std::size_t k_, room_, size_ = 0;
    Score infinity_, bound_ = 0, proven_ = 0;
    Buffer<Raw> values_;
    Buffer<std::int64_t> indices_;
    Buffer<Score> scores_;
};

// What the loops look for, from what either end wants.
template <typename Raw>
Bounds<Raw> bounds_of(const Candidates<Raw>& largest, const Candidates<Raw>& smallest) {
    return Bounds<Raw>::of_keys(largest.bound(), static_cast<Key<Raw>>(~smallest.bound()));
}

}  // namespace neuronllm
