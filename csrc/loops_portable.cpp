// What every machine of the architecture has: SSE2 on x86-64, NEON on 64-bit ARM.
#include "loops_plain.h"

namespace neuronllm {

const LoopTables* loops_portable() {
    static constexpr LoopTables tables = {plain_loops<std::uint16_t>(), plain_loops<std::uint32_t>(),
                                          plain_loops<std::uint64_t>()};
    return &tables;
}

}  // namespace neuronllm
