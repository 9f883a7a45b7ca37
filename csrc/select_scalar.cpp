// The scalar selection: the fallback of every faster one, and the oracle that they are tested against.
//
// A heap keeps the k best candidates with the worst on top. Elements arrive in index order, so one that merely ties
// with the worst never replaces it, and ties go to the lowest index.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "dtypes.h"
#include "select.h"

namespace neuronllm {
namespace {

template <typename Raw>
struct Candidate {
    Key<Raw> score;  // the larger, the better
    std::int64_t index;
    Raw bits;
};

template <typename Raw>
class Best {
   public:
    explicit Best(std::int64_t size) : size_(static_cast<std::size_t>(size)) {}

    void offer(const Candidate<Raw>& candidate) {
        if (heap_.size() < size_) {
            heap_.push_back(candidate);
            std::push_heap(heap_.begin(), heap_.end(), is_better);
        } else if (size_ > 0 && candidate.score > heap_.front().score) {
            std::pop_heap(heap_.begin(), heap_.end(), is_better);
            heap_.back() = candidate;
            std::push_heap(heap_.begin(), heap_.end(), is_better);
        }
    }

    Selected take(bool sorted) {
        std::sort(heap_.begin(), heap_.end(), sorted ? is_better : is_earlier);
        Selected selected{Buffer<unsigned char>(heap_.size() * sizeof(Raw)), Buffer<std::int64_t>(heap_.size()),
                          heap_.size()};
        for (std::size_t i = 0; i < heap_.size(); ++i) {
            std::memcpy(selected.values.data() + i * sizeof(Raw), &heap_[i].bits, sizeof(Raw));
            selected.indices[i] = heap_[i].index;
        }
        return selected;
    }

   private:
    static bool is_better(const Candidate<Raw>& a, const Candidate<Raw>& b) {
        return a.score != b.score ? a.score > b.score : a.index < b.index;
    }
    static bool is_earlier(const Candidate<Raw>& a, const Candidate<Raw>& b) { return a.index < b.index; }

    std::size_t size_;
    std::vector<Candidate<Raw>> heap_;
};

template <typename Raw>
Extremes select(const View& view, const Options& options, Key<Raw> infinity) {
    Best<Raw> largest(std::min(options.largest, view.n)), smallest(std::min(options.smallest, view.n));
    Extremes result;
    for (std::int64_t i = 0; i < view.n; ++i) {
        if (i % (1 << 20) == 0) options.check();
        Raw bits;
        std::memcpy(&bits, static_cast<const char*>(view.data) + i * view.stride, sizeof bits);
        if (is_nan(bits, infinity)) {
            ++result.n_nan;
            continue;
        }
        const Key<Raw> key = key_of(bits);
        largest.offer({key, i, bits});
        smallest.offer({static_cast<Key<Raw>>(~key), i, bits});
    }
    result.n_valid = view.n - result.n_nan;
    result.largest = largest.take(options.sorted);
    result.smallest = smallest.take(options.sorted);
    return result;
}

}  // namespace

Extremes extremes_scalar(const View& view, const Options& options) {
    return with_bits(view.dtype,
                     [&](auto raw, auto infinity) { return select<decltype(raw)>(view, options, infinity); });
}

}  // namespace neuronllm
