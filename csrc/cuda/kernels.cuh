// The kernels of the selection on CUDA. None of them uses shared memory or speaks to its neighbours: every thread walks
// over its elements and, rarely, takes a place in a list with an atomic addition.
//
// Scores are unsigned, and the greatest is the best: of the largest the key with its sign turned over, of the smallest
// its complement. -0 has the key of +0; the bits themselves are fetched from the data at the end.
#pragma once

#include "../keys.h"
#include "device.cuh"

namespace neuronllm {

using Count = unsigned long long;  // what atomicAdd takes
constexpr int kPivots = 16;
constexpr unsigned kThreads = 256;

template <typename Raw>
struct Matrix {
    const Raw* data;
    std::int64_t rows, columns, row_stride;
    Raw infinity;
};

// Of one end of a row: what is wanted are scores above the bound, and those equal to it in front of the limit.
template <typename Raw>
struct Wanted {
    Raw bound;
    std::int64_t limit;
    Count count;  // of the elements found; those beyond the capacity were not kept
};

template <typename Raw>
struct Control {
    Wanted<Raw> end[2];  // largest, smallest
    Count n_nan;
};

// Lists of candidates: `capacity` places a row.
template <typename Raw>
struct Lists {
    Raw* scores[2];
    std::int64_t* indices[2];
    std::int64_t capacity;
};

template <typename Raw>
__device__ __forceinline__ Raw magnitude_bits(Raw bits) {
    return static_cast<Raw>(bits & static_cast<Raw>(kMagnitude<Raw>));
}

template <typename Raw>
__device__ __forceinline__ Raw score_bits(Raw bits, int end) {
    const Raw sign = static_cast<Raw>(~static_cast<Raw>(kMagnitude<Raw>));
    const Raw magnitude = magnitude_bits(bits);
    // A negative number counts downwards, and -0 is +0.
    const Raw largest = (bits & sign) && magnitude ? static_cast<Raw>(~bits) : static_cast<Raw>(magnitude | sign);
    return end == 0 ? largest : static_cast<Raw>(~largest);
}

__device__ __forceinline__ std::uint64_t scramble(std::uint64_t z) {  // splitmix64
    z = (z + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// How far scores are from the best, for sorts that begin with the best.
template <typename Raw>
__device__ __forceinline__ std::uint64_t distance_of(Raw score) {
    return static_cast<Raw>(~score);
}

// The distances of `size` random elements of every row, and their rows. A NaN is the worst.
template <typename Raw>
__global__ void sample_kernel(Matrix<Raw> x, std::int64_t size, int end, std::uint64_t* distances,
                              std::uint64_t* rows) {
    const std::int64_t total = x.rows * size, step = std::int64_t{gridDim.x} * blockDim.x;
    for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += step) {
        const std::int64_t row = i / size;
        const std::int64_t column =
            static_cast<std::int64_t>(scramble(static_cast<std::uint64_t>(i)) % static_cast<std::uint64_t>(x.columns));
        const Raw bits = x.data[row * x.row_stride + column];
        const bool nan = magnitude_bits(bits) > x.infinity;
        distances[i] = distance_of(nan ? Raw{0} : score_bits(bits, end));
        rows[i] = static_cast<std::uint64_t>(row);
    }
}

// The bound of every row: the score of a rank in its sorted sample. rank < 0: nothing is wanted; no sample: everything.
template <typename Raw>
__global__ void bounds_kernel(Control<Raw>* control, std::int64_t rows, std::int64_t columns, int end,
                              const std::uint64_t* distances, std::int64_t size, std::int64_t rank) {
    const Raw nothing = static_cast<Raw>(~Raw{0});
    const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
    for (std::int64_t row = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; row < rows; row += step) {
        const Raw guess = rank >= 0 && rank < size ? static_cast<Raw>(~distances[row * size + rank]) : Raw{0};
        control[row].end[end] = {rank < 0 ? nothing : guess, rank < 0 ? 0 : columns, 0};
        control[row].n_nan = 0;
    }
}

template <typename Raw>
__device__ __forceinline__ void take(const Matrix<Raw>& x, Control<Raw>& control, const Lists<Raw>& lists,
                                     const Wanted<Raw>* wanted, std::int64_t row, std::int64_t column, Raw bits,
                                     Count* nan) {
    if (magnitude_bits(bits) > x.infinity) {
        ++*nan;
        return;
    }
    for (int end = 0; end < 2; ++end) {
        const Raw score = score_bits(bits, end);
        if (score < wanted[end].bound || (score == wanted[end].bound && column >= wanted[end].limit)) continue;
        const std::int64_t place = static_cast<std::int64_t>(atomicAdd(&control.end[end].count, Count{1}));
        if (place >= lists.capacity) continue;
        lists.scores[end][row * lists.capacity + place] = score;
        lists.indices[end][row * lists.capacity + place] = column;
    }
}

// The least |x| that reaches a bound, if the bounds are on both sides of zero; 0 otherwise: every element is looked at.
template <typename Raw>
__device__ __forceinline__ Raw hot_magnitude(const Wanted<Raw>* wanted, Raw infinity) {
    const Raw sign = static_cast<Raw>(~static_cast<Raw>(kMagnitude<Raw>));
    const Raw largest = wanted[0].bound, smallest = wanted[1].bound;
    if (!(largest > sign) || !(smallest > static_cast<Raw>(~sign))) return 0;
    const Raw high = static_cast<Raw>(largest ^ sign);  // as |x|
    const Raw low = static_cast<Raw>(smallest & static_cast<Raw>(kMagnitude<Raw>));
    const Raw least = high < low ? high : low, first_nan = static_cast<Raw>(infinity + 1);
    return least < first_nan ? least : first_nan;
}

// The greatest |x| among the elements of 16 bytes.
template <typename Raw>
__device__ __forceinline__ Raw greatest_magnitude(uint4 v) {
    if constexpr (sizeof(Raw) == 2) {
        const unsigned mask = 0x7fff7fffu;
        const unsigned m = __vmaxu2(__vmaxu2(v.x & mask, v.y & mask), __vmaxu2(v.z & mask, v.w & mask));
        const unsigned high = m >> 16, low = m & 0xffffu;
        return static_cast<Raw>(high > low ? high : low);
    } else if constexpr (sizeof(Raw) == 4) {
        const unsigned mask = 0x7fffffffu;
        const unsigned x = v.x & mask, y = v.y & mask, z = v.z & mask, w = v.w & mask;
        const unsigned a = x > y ? x : y, b = z > w ? z : w;
        return a > b ? a : b;
    } else {
        const std::uint64_t mask = 0x7fffffffffffffffu;
        const std::uint64_t a = (std::uint64_t{v.y} << 32 | v.x) & mask, b = (std::uint64_t{v.w} << 32 | v.z) & mask;
        return a > b ? a : b;
    }
}

// Choices instead of an array of the words: an array that is indexed at run time would lie in memory.
template <typename Raw>
__device__ __forceinline__ Raw element_of(uint4 v, int i) {
    if constexpr (sizeof(Raw) == 8) {
        const unsigned low = i == 0 ? v.x : v.z, high = i == 0 ? v.y : v.w;
        return std::uint64_t{high} << 32 | low;
    } else {
        constexpr int kInWord = 4 / sizeof(Raw);
        const int word = i / kInWord;
        const unsigned bits = word == 0 ? v.x : word == 1 ? v.y : word == 2 ? v.z : v.w;
        return static_cast<Raw>(bits >> (i % kInWord * 16));
    }
}

// The one read: blockIdx.y walks over the rows, the blocks of a row share its elements in steps of 64 bytes a thread.
template <typename Raw>
__global__ void __launch_bounds__(kThreads) filter_kernel(Matrix<Raw> x, Control<Raw>* controls, Lists<Raw> lists) {
    constexpr int kLoads = 4, kEach = 16 / sizeof(Raw);
    for (std::int64_t row = blockIdx.y; row < x.rows; row += gridDim.y) {
        Control<Raw>& control = controls[row];
        const Wanted<Raw> wanted[2] = {control.end[0], control.end[1]};
        const Raw hot = hot_magnitude(wanted, x.infinity);
        const Raw* data = x.data + row * x.row_stride;
        const std::int64_t thread = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
        const std::int64_t threads = std::int64_t{gridDim.x} * blockDim.x;
        // Up to the first multiple of 16 bytes, and what is left at the end: an element a thread.
        std::int64_t head =
            static_cast<std::int64_t>((16 - reinterpret_cast<std::uintptr_t>(data) % 16) % 16 / sizeof(Raw));
        head = head < x.columns ? head : x.columns;
        const std::int64_t n_vectors = (x.columns - head) / kEach, tail = head + n_vectors * kEach;
        Count nan = 0;
        if (thread < head) take(x, control, lists, wanted, row, thread, data[thread], &nan);
        if (tail + thread < x.columns) take(x, control, lists, wanted, row, tail + thread, data[tail + thread], &nan);
        const uint4* vectors = reinterpret_cast<const uint4*>(data + head);
        for (std::int64_t first = thread; first < n_vectors; first += threads * kLoads) {
            uint4 v[kLoads];
            Raw greatest = 0;
#pragma unroll
            for (int i = 0; i < kLoads; ++i) {
                const std::int64_t at = first + i * threads;
                v[i] = at < n_vectors ? __ldcs(vectors + at) : uint4{0, 0, 0, 0};
                const Raw one = greatest_magnitude<Raw>(v[i]);
                greatest = one > greatest ? one : greatest;
            }
            if (greatest < hot) continue;
#pragma unroll
            for (int i = 0; i < kLoads; ++i) {
                const std::int64_t at = first + i * threads;
                if (at >= n_vectors) break;
                for (int j = 0; j < kEach; ++j) {
                    take(x, control, lists, wanted, row, head + at * kEach + j, element_of<Raw>(v[i], j), &nan);
                }
            }
        }
        if (nan) atomicAdd(&control.n_nan, nan);
    }
}

template <typename Raw>
struct Pivots {
    Raw score[kPivots];
    std::int64_t index[kPivots];
    int size;
};

// counts[i]: how many elements of a row have a score of at least pivots.score[i].
template <typename Raw>
__global__ void count_scores_kernel(const Raw* data, std::int64_t columns, Raw infinity, int end, Pivots<Raw> pivots,
                                    Count* counts) {
    Count mine[kPivots] = {};
    const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
    for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < columns; i += step) {
        const Raw bits = data[i];
        if (magnitude_bits(bits) > infinity) continue;
        const Raw score = score_bits(bits, end);
#pragma unroll
        for (int j = 0; j < kPivots; ++j) mine[j] += score >= pivots.score[j];
    }
#pragma unroll
    for (int j = 0; j < kPivots; ++j) {
        if (mine[j]) atomicAdd(counts + j, mine[j]);
    }
}

// counts[i]: how many elements in [begin, pivots.index[i]) have this very score.
template <typename Raw>
__global__ void count_ties_kernel(const Raw* data, std::int64_t begin, std::int64_t stop, Raw infinity, int end,
                                  Raw score, Pivots<Raw> pivots, Count* counts) {
    Count mine[kPivots] = {};
    const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
    for (std::int64_t i = begin + std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < stop; i += step) {
        const Raw bits = data[i];
        if (magnitude_bits(bits) > infinity || score_bits(bits, end) != score) continue;
#pragma unroll
        for (int j = 0; j < kPivots; ++j) mine[j] += i < pivots.index[j];
    }
#pragma unroll
    for (int j = 0; j < kPivots; ++j) {
        if (mine[j]) atomicAdd(counts + j, mine[j]);
    }
}

// The lists of all rows behind one another, as places in the whole matrix and distances. begins[row] is where a row's
// go.
template <typename Raw>
__global__ void pack_kernel(const Raw* scores, const std::int64_t* indices, std::int64_t capacity, std::int64_t rows,
                            std::int64_t columns, const std::int64_t* begins, std::uint64_t* places,
                            std::uint64_t* distances) {
    const std::int64_t total = rows * capacity, step = std::int64_t{gridDim.x} * blockDim.x;
    for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += step) {
        const std::int64_t row = i / capacity, to = begins[row] + i % capacity;
        if (to >= begins[row + 1]) continue;
        places[to] = static_cast<std::uint64_t>(row * columns + indices[i]);
        distances[to] = distance_of(scores[i]);
    }
}

// The row of every place.
template <typename Raw>
__global__ void rows_kernel(const std::uint64_t* places, std::int64_t n, std::int64_t columns, std::uint64_t* rows) {
    const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
    for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) {
        rows[i] = places[i] / static_cast<std::uint64_t>(columns);
    }
}

// The first k of every row's sorted places, with the bits that they have in the data.
template <typename Raw>
__global__ void emit_kernel(Matrix<Raw> x, const std::int64_t* begins, const std::uint64_t* places, std::int64_t k,
                            Raw* values, std::int64_t* indices) {
    const std::int64_t total = x.rows * k, step = std::int64_t{gridDim.x} * blockDim.x;
    const Raw quiet_nan = static_cast<Raw>(x.infinity | (x.infinity & (~x.infinity + 1)) >> 1);
    for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += step) {
        const std::int64_t row = i / k, from = begins[row] + i % k;
        const bool there = from < begins[row + 1];
        const std::int64_t column = there ? static_cast<std::int64_t>(places[from]) - row * x.columns : -1;
        indices[i] = column;
        values[i] = there ? x.data[row * x.row_stride + column] : quiet_nan;
    }
}

}  // namespace neuronllm
