// What the selection needs of CUDA: launches and stable sorts. Without nvcc the same file stands for emulation.h, in
// which the threads of a kernel run one after the other: so the tests run the kernels on machines without a GPU, too.
#pragma once

#ifndef __CUDACC__
#include "emulation.h"
#else

#include <cuda_runtime.h>

#include <cstdint>
#include <cub/device/device_radix_sort.cuh>

namespace neuronllm {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 blocks, unsigned threads, cudaStream_t stream,
                   Arguments... arguments) {
    if (blocks.x == 0 || blocks.y == 0) return cudaSuccess;
    // clang-format off
    kernel<<<blocks, threads, 0, stream>>>(arguments...);
    // clang-format on
    return cudaGetLastError();
}

// Sorts keys with their values, stably, by bits [0, bits). With temporary == nullptr only *bytes is set. The one sort
// of the selection: every further type would be compiled for minutes.
inline cudaError_t sort_pairs(void* temporary, std::size_t* bytes, const std::uint64_t* keys_in,
                              std::uint64_t* keys_out, const std::uint64_t* values_in, std::uint64_t* values_out,
                              std::int64_t n, int bits, cudaStream_t stream) {
    return cub::DeviceRadixSort::SortPairs(temporary, *bytes, keys_in, keys_out, values_in, values_out, n, 0, bits,
                                           stream);
}

}  // namespace neuronllm
#endif
