// The extremes of an array that comes in parts.
//
// What is kept are the best of all parts so far, k to about 2k + 10,000 of each end. The worst of the k best is the
// floor that the elements of the next part must reach.
#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <variant>

#include "collector.h"
#include "dtypes.h"
#include "finish.h"
#include "loops.h"
#include "select.h"

namespace neuronllm {
namespace {

// Everything in the order of the indices, as Candidates::cut needs it.
template <typename Raw>
void sort_by_index(Candidates<Raw>& end) {
    const std::size_t n = end.size();
    if (std::is_sorted(end.indices(), end.indices() + n)) return;
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return end.indices()[a] < end.indices()[b]; });
    Buffer<Raw> values(n);
    Buffer<std::int64_t> indices(n);
    for (std::size_t i = 0; i < n; ++i) {
        values[i] = end.values()[order[i]];
        indices[i] = end.indices()[order[i]];
    }
    std::memcpy(end.values(), values.data(), n * sizeof(Raw));
    std::memcpy(end.indices(), indices.data(), n * sizeof(std::int64_t));
}

template <typename Raw>
void absorb(Candidates<Raw>& end, const Candidates<Raw>& more) {
    if (more.size() == 0) return;
    end.append_run(more.values(), more.indices(), more.size());
    if (end.size() < candidate_room(end.k(), SIZE_MAX) - kChunk) return;
    sort_by_index(end);
    end.cut();
}

template <typename Raw>
Candidates<Raw> copy_of(const Candidates<Raw>& end, bool largest, Key<Raw> infinity) {
    Candidates<Raw> copy(largest, end.k(), 0, infinity);
    copy.append_run(end.values(), end.indices(), end.size());
    sort_by_index(copy);
    return copy;
}

}  // namespace

template <typename Raw>
struct Stream::State {
    using Bits = Raw;
    Key<Raw> infinity;
    Candidates<Raw> largest, smallest;
    std::int64_t n_nan = 0, n_seen = 0;
    std::int64_t next = INT64_MIN;  // all that came so far lies below

    State(std::size_t n_largest, std::size_t n_smallest, Key<Raw> infinity)
        : infinity(infinity), largest(true, n_largest, 0, infinity), smallest(false, n_smallest, 0, infinity) {}

    // A tie with the worst of the k best loses if it comes behind it, and may win otherwise.
    Key<Raw> floor_of(const Candidates<Raw>& end, std::int64_t base) const {
        return base >= next ? end.bound() : end.proven();
    }
};

struct Stream::AnyState {
    std::variant<State<std::uint16_t>, State<std::uint32_t>, State<std::uint64_t>> state;
};

template <typename Visit>
decltype(auto) Stream::visit(Visit visit) const {
    return std::visit(visit, state_->state);
}

Stream::Stream(DType dtype, std::int64_t largest, std::int64_t smallest)
    : dtype_(dtype), largest_(largest), smallest_(smallest) {
    with_bits(dtype, [&](auto raw, auto infinity) {
        State<decltype(raw)> state(static_cast<std::size_t>(largest), static_cast<std::size_t>(smallest), infinity);
        state_ = std::make_unique<AnyState>(AnyState{std::move(state)});
    });
}
Stream::Stream(Stream&&) noexcept = default;
Stream::~Stream() = default;

void Stream::push(const View& view, std::int64_t base, const Options& asked) {
    if (view.dtype != dtype_) throw std::invalid_argument("the part is of another dtype than the stream");
    if (view.n == 0) return;
    visit([&](auto& state) {
        using Raw = typename std::remove_reference_t<decltype(state)>::Bits;
        const LoopTables* active = active_loops();
        const LoopTables& loops = active ? *active : *loops_portable();
        Options options = asked;
        const std::size_t n = static_cast<std::size_t>(view.n);
        const std::size_t n_blocks = n * sizeof(Raw) / std::max<std::size_t>(options.block_bytes, 1) + 1;
        options.threads =
            static_cast<int>(std::clamp<std::size_t>(static_cast<std::size_t>(asked.threads), 1, n_blocks));
        Collector<Raw> collector(loops_of<Raw>(loops), state.infinity, std::min(state.largest.k(), n),
                                 std::min(state.smallest.k(), n), n, options.threads);
        collector.collect(view, base, state.floor_of(state.largest, base), state.floor_of(state.smallest, base),
                          options);
        absorb(state.largest, collector.merged(true));
        absorb(state.smallest, collector.merged(false));
        state.n_nan += static_cast<std::int64_t>(collector.n_nan());
        state.n_seen += view.n;
        state.next = std::max(state.next, base + view.n);
    });
}

void Stream::merge(const Stream& other) {
    if (other.dtype_ != dtype_ || other.largest_ != largest_ || other.smallest_ != smallest_) {
        throw std::invalid_argument("the streams differ in dtype or in the numbers of elements that they select");
    }
    visit([&](auto& state) {
        const auto& theirs = std::get<std::remove_reference_t<decltype(state)>>(other.state_->state);
        absorb(state.largest, copy_of(theirs.largest, true, theirs.infinity));
        absorb(state.smallest, copy_of(theirs.smallest, false, theirs.infinity));
        state.n_nan += theirs.n_nan;
        state.n_seen += theirs.n_seen;
        state.next = std::max(state.next, theirs.next);
    });
}

Extremes Stream::result(bool sorted) const {
    return visit([&](const auto& state) {
        auto largest = copy_of(state.largest, true, state.infinity);
        auto smallest = copy_of(state.smallest, false, state.infinity);
        Extremes result;
        result.largest = finish_end(largest, sorted, [] {});
        result.smallest = finish_end(smallest, sorted, [] {});
        result.n_nan = state.n_nan;
        result.n_valid = state.n_seen - state.n_nan;
        return result;
    });
}

}  // namespace neuronllm
