// From candidates to a result.
#pragma once

#include "candidates.h"
#include "parallel.h"
#include "rank.h"
#include "select.h"

namespace neuronllm {

// The k best, from the best down or in the order of their indices. Cuts the candidates.
template <typename Raw>
Selected finish_end(Candidates<Raw>& candidates, bool sorted, const Check& check) {
    candidates.cut();
    const std::size_t n = candidates.size();
    Selected selected{Buffer<unsigned char>(n * sizeof(Raw)), Buffer<std::int64_t>(n), n};
    Raw* values = reinterpret_cast<Raw*>(selected.values.data());
    if (sorted) {
        sort_by_score(candidates.values(), candidates.indices(), n, candidates.flip(), check, values,
                      selected.indices.data());
    } else if (n > 0) {
        std::memcpy(values, candidates.values(), n * sizeof(Raw));
        std::memcpy(selected.indices.data(), candidates.indices(), n * sizeof(std::int64_t));
    }
    return selected;
}

// finish(largest) for both ends, side by side where they are large enough to pay for a thread.
template <typename Finish>
void finish_ends(Extremes& result, std::size_t n_candidates, const Options& options, const Finish& finish) {
    const int threads = n_candidates > 20000 ? options.threads : 1;
    for_each_block(2, threads, options.check, [&](int thread, std::size_t end) {
        const Check none = [] {};
        (end == 0 ? result.largest : result.smallest) = finish(end == 0, thread == 0 ? options.check : none);
    });
}

}  // namespace neuronllm
