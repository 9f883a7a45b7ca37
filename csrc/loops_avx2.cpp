// The plain loops again, compiled with 32-byte vectors.
#include "loops_plain.h"

namespace neuronllm {

#ifdef __AVX2__
const LoopTables* loops_avx2() {
    static constexpr LoopTables tables = {plain_loops<std::uint16_t>(), plain_loops<std::uint32_t>(),
                                          plain_loops<std::uint64_t>()};
    return &tables;
}
#else
const LoopTables* loops_avx2() { return nullptr; }
#endif

}  // namespace neuronllm
