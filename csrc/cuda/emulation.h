// A CUDA device for tests, as far as select_cuda.cu needs one: memory is the host's, and the threads of a kernel run
// one after the other, which shows any result that an order of threads can give but races within one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __restrict__

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint4 {
    unsigned x, y, z, w;
};
using cudaStream_t = void*;
using cudaError_t = int;
enum { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum { cudaMemcpyDeviceToHost, cudaMemcpyHostToDevice, cudaDevAttrMultiProcessorCount };

inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

inline uint4 __ldcs(const uint4* address) { return *address; }
inline unsigned __vmaxu2(unsigned a, unsigned b) {
    return std::max(a & 0xffff0000u, b & 0xffff0000u) | std::max(a & 0xffffu, b & 0xffffu);
}
template <typename T>
T atomicAdd(T* address, T value) {
    const T before = *address;
    *address += value;
    return before;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, int, cudaStream_t) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
    *value = 3;  // processors: enough for several blocks
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulated device"; }

namespace neuronllm {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 blocks, unsigned threads, cudaStream_t, Arguments... arguments) {
    gridDim = blocks;
    blockDim = dim3(threads);
    for (unsigned y = 0; y < blocks.y; ++y) {
        for (unsigned x = blocks.x; x-- > 0;) {  // last block first: no result may depend on the order
            for (unsigned thread = 0; thread < threads; ++thread) {
                blockIdx = dim3(x, y);
                threadIdx = dim3(thread);
                kernel(arguments...);
            }
        }
    }
    return cudaSuccess;
}

inline cudaError_t sort_pairs(void* temporary, std::size_t* bytes, const std::uint64_t* keys_in,
                              std::uint64_t* keys_out, const std::uint64_t* values_in, std::uint64_t* values_out,
                              std::int64_t n, int bits, cudaStream_t) {
    if (temporary == nullptr) {
        *bytes = 1;
        return cudaSuccess;
    }
    const std::uint64_t mask = bits == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1;
    std::vector<std::size_t> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return (keys_in[a] & mask) < (keys_in[b] & mask); });
    for (std::size_t i = 0; i < order.size(); ++i) {
        keys_out[i] = keys_in[order[i]];
        values_out[i] = values_in[order[i]];
    }
    return cudaSuccess;
}

}  // namespace neuronllm
