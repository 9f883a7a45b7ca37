// Both ends of a one-dimensional view.
#include "select.h"

#include <algorithm>

#include "collector.h"
#include "dtypes.h"
#include "finish.h"
#include "large.h"
#include "loops.h"

namespace neuronllm {
namespace {

// From this share of the elements on, candidates cost more than a second pass over the array.
bool is_large(const Options& options, std::int64_t n) {
    return n >= 1 << 16 && std::max(options.largest, options.smallest) > n / 32;
}

template <typename Raw>
Extremes select(const View& view, const Options& options, const Loops<Raw>& loops, Key<Raw> infinity) {
    Extremes result;
    std::size_t n_nan;
    if (is_large(options, view.n)) {
        LargeSelection<Raw> selection(view, options, loops, infinity);
        n_nan = selection.run();
        finish_ends(result, selection.largest.k() + selection.smallest.k(), options,
                    [&](bool largest, const Check& check) {
                        return (largest ? selection.largest : selection.smallest).take(options.sorted, check);
                    });
    } else {
        Collector<Raw> collector(loops, infinity, static_cast<std::size_t>(options.largest),
                                 static_cast<std::size_t>(options.smallest), static_cast<std::size_t>(view.n),
                                 options.threads);
        const Key<Raw> everything = static_cast<Key<Raw>>(~infinity);
        collector.collect(view, 0, everything, everything, options);
        n_nan = collector.n_nan();
        const std::size_t expected = static_cast<std::size_t>(options.largest + options.smallest);
        finish_ends(result, expected, options, [&](bool largest, const Check& check) {
            return finish_end(collector.merged(largest), options.sorted, check);
        });
    }
    result.n_nan = static_cast<std::int64_t>(n_nan);
    result.n_valid = view.n - result.n_nan;
    return result;
}

}  // namespace

std::size_t size_of(DType dtype) {
    return with_bits(dtype, [](auto raw, auto) { return sizeof raw; });
}

Extremes extremes(const View& view, const Options& asked) {
    Options options = asked;
    options.largest = std::clamp<std::int64_t>(asked.largest, 0, view.n);
    options.smallest = std::clamp<std::int64_t>(asked.smallest, 0, view.n);
    const std::int64_t n_blocks = view.n * static_cast<std::int64_t>(size_of(view.dtype)) /
                                      static_cast<std::int64_t>(std::max<std::size_t>(asked.block_bytes, 1)) +
                                  1;
    options.threads = static_cast<int>(std::clamp<std::int64_t>(asked.threads, 1, n_blocks));
    const LoopTables* loops = active_loops();
    if (loops == nullptr) return extremes_scalar(view, options);
    return with_bits(view.dtype, [&](auto raw, auto infinity) {
        return select<decltype(raw)>(view, options, loops_of<decltype(raw)>(*loops), infinity);
    });
}

}  // namespace neuronllm
