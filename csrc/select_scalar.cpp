// The scalar selection: the fallback of every faster one, and the oracle that they are tested against.
//
// A heap keeps the k best candidates with the worst on top. Elements arrive in index order, so one that merely ties
// with the worst never replaces it, and ties go to the lowest index.
#include <algorithm>
#include <cstddef>
#include <cstring>

#include "select.h"

namespace neuronllm {
namespace {

constexpr std::uint32_t kSignBit = 0x80000000u;
constexpr std::uint32_t kInfinity = 0x7f800000u;

std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

bool is_nan(std::uint32_t bits) { return (bits & ~kSignBit) > kInfinity; }

// An unsigned integer that grows with the value: negative floats count downwards in their bits.
std::uint32_t ascending_key(std::uint32_t bits) {
    if (bits == kSignBit) bits = 0;  // -0 equals +0
    return bits & kSignBit ? ~bits : bits | kSignBit;
}

struct Candidate {
    std::uint32_t key;  // the larger, the better
    std::int64_t index;
};

bool is_better(const Candidate& a, const Candidate& b) { return a.key != b.key ? a.key > b.key : a.index < b.index; }

class Best {
   public:
    explicit Best(std::int64_t size) : size_(static_cast<std::size_t>(size)) { heap_.reserve(size_); }

    void offer(std::uint32_t key, std::int64_t index) {
        if (heap_.size() < size_) {
            heap_.push_back({key, index});
            std::push_heap(heap_.begin(), heap_.end(), is_better);
        } else if (size_ > 0 && key > heap_.front().key) {
            std::pop_heap(heap_.begin(), heap_.end(), is_better);
            heap_.back() = {key, index};
            std::push_heap(heap_.begin(), heap_.end(), is_better);
        }
    }

    Selected take(const float* data) {
        std::sort_heap(heap_.begin(), heap_.end(), is_better);
        Selected selected;
        selected.values.reserve(heap_.size());
        selected.indices.reserve(heap_.size());
        for (const Candidate& candidate : heap_) {
            selected.values.push_back(data[candidate.index]);
            selected.indices.push_back(candidate.index);
        }
        return selected;
    }

   private:
    std::size_t size_;
    std::vector<Candidate> heap_;
};

}  // namespace

Extremes extremes_scalar(const float* data, std::int64_t n, std::int64_t n_largest, std::int64_t n_smallest) {
    Best largest(std::min(n_largest, n));
    Best smallest(std::min(n_smallest, n));
    Extremes result;
    for (std::int64_t i = 0; i < n; ++i) {
        const std::uint32_t bits = bits_of(data[i]);
        if (is_nan(bits)) {
            ++result.n_nan;
            continue;
        }
        const std::uint32_t key = ascending_key(bits);
        largest.offer(key, i);
        smallest.offer(~key, i);
    }
    result.n_valid = n - result.n_nan;
    result.largest = largest.take(data);
    result.smallest = smallest.take(data);
    return result;
}

}  // namespace neuronllm
