// From the type of the elements to the width of their bits and the key of infinity.
#pragma once

#include "keys.h"
#include "select.h"

namespace neuronllm {

// Calls visit(Raw{}, infinity) for the unsigned integer that is as wide as the dtype.
template <typename Visit>
decltype(auto) with_bits(DType dtype, const Visit& visit) {
    switch (dtype) {
        case DType::f16:
            return visit(std::uint16_t{}, std::int16_t{0x7c00});
        case DType::bf16:
            return visit(std::uint16_t{}, std::int16_t{0x7f80});
        case DType::f32:
            return visit(std::uint32_t{}, std::int32_t{0x7f800000});
        default:
            return visit(std::uint64_t{}, std::int64_t{0x7ff0000000000000});
    }
}

}  // namespace neuronllm
