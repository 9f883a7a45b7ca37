// Both ends of the rows of a matrix on a CUDA device, with one read of the data.
//
// 1. A random sample of every row, sorted, guesses a bound that more than k elements reach (and few more).
// 2. One pass appends what reaches it, in whatever order, and counts NaNs: a thread looks closer only where the
// greatest
//    |x| among its 64 bytes reaches the nearer bound.
// 3. Stable radix sorts of the candidates, by place, by score and by row, give the one right order.
// Where a guess failed (fewer than k elements, or more than there is room for, as with many equal values), the k-th
// score and the last of its ties are searched for exactly, sixteen pivots a pass, and the row is read once more with
// those.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.cuh"
#include "select_cuda.h"

namespace neuronllm {
namespace {

#define NEURONLLM_TRY(call)                                 \
    do {                                                    \
        if (const cudaError_t error = (call)) return error; \
    } while (false)

int bit_width(std::uint64_t x) {
    int width = 0;
    for (; x; x >>= 1) ++width;
    return width;
}

// Cuts one allocation into aligned pieces; with a null base it only adds up.
class Arena {
   public:
    explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
    template <typename T>
    T* take(std::int64_t n) {
        const std::size_t at = used_;
        used_ += (static_cast<std::size_t>(std::max<std::int64_t>(n, 1)) * sizeof(T) + 255) / 256 * 256;
        return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
    }
    std::size_t used() const { return used_; }

   private:
    char* base_;
    std::size_t used_ = 0;
};

template <typename Raw>
class Selection {
   public:
    Selection(const Matrix<Raw>& x, std::int64_t largest, std::int64_t smallest, cudaStream_t stream)
        : x_(x), k_{largest, smallest}, stream_(stream) {
        int device = 0, processors = 0;
        if (cudaGetDevice(&device) == cudaSuccess) {
            cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
        }
        resident_ = static_cast<unsigned>(std::max(processors, 1)) * 8;  // blocks of 256 threads that run at once
        plan();
    }

    cudaError_t allocate(void* workspace, std::size_t* bytes) {
        Arena arena(workspace);
        controls_ = arena.take<Control<Raw>>(x_.rows);
        for (int end = 0; end < 2; ++end) {
            lists_.scores[end] = arena.take<Raw>(x_.rows * capacity_);
            lists_.indices[end] = arena.take<std::int64_t>(x_.rows * capacity_);
        }
        lists_.capacity = capacity_;
        const std::int64_t most = x_.rows * std::max(capacity_, sample_size_);
        for (std::uint64_t*& buffer : sorting_) buffer = arena.take<std::uint64_t>(most);
        begins_ = arena.take<std::int64_t>(x_.rows + 1);
        counts_ = arena.take<Count>(kPivots);
        NEURONLLM_TRY(sort_pairs(nullptr, &temporary_bytes_, nullptr, nullptr, nullptr, nullptr, most, 64, stream_));
        temporary_ = arena.take<char>(static_cast<std::int64_t>(temporary_bytes_));
        *bytes = arena.used();
        return cudaSuccess;
    }

    cudaError_t run(void* const* values, std::int64_t* const* indices, std::int64_t* n_nan) {
        found_.resize(static_cast<std::size_t>(x_.rows));
        for (int end = 0; end < 2; ++end) NEURONLLM_TRY(guess(end));
        NEURONLLM_TRY(filter(x_, controls_, lists_));
        NEURONLLM_TRY(read(found_.data(), controls_, found_.size()));
        for (std::int64_t row = 0; row < x_.rows; ++row) {
            Control<Raw>& control = found_[static_cast<std::size_t>(row)];
            if (!is_complete(control, 0) || !is_complete(control, 1)) NEURONLLM_TRY(search_row(row, control));
            n_nan[row] = static_cast<std::int64_t>(control.n_nan);
        }
        for (int end = 0; end < 2; ++end) {
            if (k_[end] > 0) NEURONLLM_TRY(finish(end, static_cast<Raw*>(values[end]), indices[end]));
        }
        return cudaStreamSynchronize(stream_);
    }

   private:
    static dim3 blocks_for(std::int64_t threads) {
        return dim3(static_cast<unsigned>(std::min<std::int64_t>((threads + kThreads - 1) / kThreads, 1 << 16)));
    }

    // How large the samples are, which rank in them is the bound, and how many candidates there is room for.
    void plan() {
        const std::int64_t most = std::max(k_[0], k_[1]), small = 1 << 15;
        if (x_.columns <= std::max(small, 4 * most)) {  // everything is a candidate
            capacity_ = x_.columns;
            rank_[0] = k_[0] ? 0 : -1;
            rank_[1] = k_[1] ? 0 : -1;
            sample_size_ = 0;
            return;
        }
        sample_size_ = x_.rows == 1 ? 1 << 17 : 1 << 11;
        double candidates = 0;
        for (int end = 0; end < 2; ++end) {
            const double per_sample = static_cast<double>(x_.columns) / static_cast<double>(sample_size_);
            const double expected = static_cast<double>(k_[end]) / per_sample;
            const double enough = expected + 4 * std::sqrt(expected + 1) + 4;
            rank_[end] = k_[end] ? static_cast<std::int64_t>(enough) : -1;
            if (k_[end]) candidates = std::max(candidates, enough * per_sample);
        }
        capacity_ = std::min(x_.columns, static_cast<std::int64_t>(1.5 * candidates) + 4096);
    }

    bool is_complete(const Control<Raw>& control, int end) const {
        const std::int64_t valid = x_.columns - static_cast<std::int64_t>(control.n_nan);
        const std::int64_t count = static_cast<std::int64_t>(control.end[end].count);
        return count <= capacity_ && count >= std::min(k_[end], valid);
    }

    template <typename T>
    cudaError_t read(T* host, const T* device, std::size_t n) {
        NEURONLLM_TRY(cudaMemcpyAsync(host, device, n * sizeof(T), cudaMemcpyDeviceToHost, stream_));
        return cudaStreamSynchronize(stream_);
    }
    template <typename T>
    cudaError_t write(T* device, const T* host, std::size_t n) {
        return cudaMemcpyAsync(device, host, n * sizeof(T), cudaMemcpyHostToDevice, stream_);
    }

    // Sorts n pairs of sorting_[0] and [1] into [2] and [3].
    cudaError_t sort_forth(std::int64_t n, int bits) {
        return sort_pairs(temporary_, &temporary_bytes_, sorting_[0], sorting_[2], sorting_[1], sorting_[3], n, bits,
                          stream_);
    }
    // By what were the values, into [1] (values) and [0] (keys).
    cudaError_t sort_back(std::int64_t n, int bits) {
        return sort_pairs(temporary_, &temporary_bytes_, sorting_[3], sorting_[1], sorting_[2], sorting_[0], n, bits,
                          stream_);
    }

    cudaError_t guess(int end) {
        const std::uint64_t* sorted = nullptr;
        if (sample_size_ > 0 && k_[end] > 0) {
            const std::int64_t total = x_.rows * sample_size_;
            NEURONLLM_TRY(launch(sample_kernel<Raw>, blocks_for(total), kThreads, stream_, x_, sample_size_, end,
                                 sorting_[0], sorting_[1]));
            NEURONLLM_TRY(sort_forth(total, static_cast<int>(sizeof(Raw)) * 8));  // distances, each with its row
            sorted = sorting_[2];
            if (x_.rows > 1) {
                NEURONLLM_TRY(sort_back(total, bit_width(static_cast<std::uint64_t>(x_.rows))));  // rows
                sorted = sorting_[0];
            }
        }
        return launch(bounds_kernel<Raw>, blocks_for(x_.rows), kThreads, stream_, controls_, x_.rows, x_.columns, end,
                      sorted, sample_size_, rank_[end]);
    }

    // The lists of an end in their right order, and the first k of every row.
    cudaError_t finish(int end, Raw* values, std::int64_t* indices) {
        std::vector<std::int64_t> begins(1, 0);
        for (const Control<Raw>& control : found_) {
            begins.push_back(begins.back() + static_cast<std::int64_t>(control.end[end].count));
        }
        const std::int64_t n = begins.back();
        NEURONLLM_TRY(write(begins_, begins.data(), begins.size()));
        NEURONLLM_TRY(launch(pack_kernel<Raw>, blocks_for(x_.rows * capacity_), kThreads, stream_, lists_.scores[end],
                             lists_.indices[end], capacity_, x_.rows, x_.columns, begins_, sorting_[0], sorting_[1]));
        const std::uint64_t* places = sorting_[0];
        if (n > 0) {
            NEURONLLM_TRY(sort_forth(n, bit_width(static_cast<std::uint64_t>(x_.rows * x_.columns))));
            NEURONLLM_TRY(sort_back(n, static_cast<int>(sizeof(Raw)) * 8));  // places by distance, now in [0]
            if (x_.rows > 1) {
                NEURONLLM_TRY(
                    launch(rows_kernel<Raw>, blocks_for(n), kThreads, stream_, places, n, x_.columns, sorting_[1]));
                NEURONLLM_TRY(sort_pairs(temporary_, &temporary_bytes_, sorting_[1], sorting_[3], sorting_[0],
                                         sorting_[2], n, bit_width(static_cast<std::uint64_t>(x_.rows)), stream_));
                places = sorting_[2];
            }
        }
        NEURONLLM_TRY(launch(emit_kernel<Raw>, blocks_for(x_.rows * k_[end]), kThreads, stream_, x_, begins_, places,
                             k_[end], values, indices));
        return cudaStreamSynchronize(stream_);  // begins is on the stack
    }

    cudaError_t filter(const Matrix<Raw>& x, Control<Raw>* controls, const Lists<Raw>& lists) {
        const unsigned y = static_cast<unsigned>(std::min<std::int64_t>(x.rows, 1 << 15));
        const std::int64_t vectors = x.columns * static_cast<std::int64_t>(sizeof(Raw)) / 64 + 1;
        const std::int64_t wanted = (vectors + kThreads - 1) / kThreads;
        const unsigned share = std::max(resident_ / y, 1u);
        return launch(filter_kernel<Raw>, dim3(static_cast<unsigned>(std::min<std::int64_t>(wanted, share)), y),
                      kThreads, stream_, x, controls, lists);
    }

    // Bounds that let exactly k elements through, and the row again with them.
    cudaError_t search_row(std::int64_t row, Control<Raw>& control) {
        const Matrix<Raw> x{x_.data + row * x_.row_stride, 1, x_.columns, x_.row_stride, x_.infinity};
        const std::int64_t valid = x_.columns - static_cast<std::int64_t>(control.n_nan);
        for (int end = 0; end < 2; ++end) {
            const std::int64_t k = std::min(k_[end], valid);
            if (k == 0) {
                control.end[end] = {static_cast<Raw>(~Raw{0}), 0, 0};
                continue;
            }
            Raw score;
            std::int64_t above, limit;
            NEURONLLM_TRY(kth_score(x.data, end, k, &score, &above));
            NEURONLLM_TRY(last_tie(x.data, end, score, k - above, &limit));
            control.end[end] = {score, limit, 0};
        }
        control.n_nan = 0;
        NEURONLLM_TRY(write(controls_ + row, &control, 1));
        Lists<Raw> lists = lists_;
        for (int end = 0; end < 2; ++end) {
            lists.scores[end] += row * capacity_;
            lists.indices[end] += row * capacity_;
        }
        NEURONLLM_TRY(filter(x, controls_ + row, lists));
        return read(&control, controls_ + row, 1);
    }

    // The k-th greatest score, and how many are above it. k is at least 1 and at most the number of valid elements.
    cudaError_t kth_score(const Raw* data, int end, std::int64_t k, Raw* score, std::int64_t* above) {
        Raw low = 0, high = static_cast<Raw>(~Raw{0});  // at least k reach low, fewer reach what lies above high
        *above = 0;
        while (low < high) {
            const std::uint64_t width = static_cast<std::uint64_t>(static_cast<Raw>(high - low));
            const std::uint64_t step = std::max<std::uint64_t>(width / kPivots + (width % kPivots > 0), 1);
            Pivots<Raw> pivots{};
            for (int i = 0; i < kPivots; ++i) {
                const std::uint64_t ahead = step * static_cast<std::uint64_t>(i + 1);
                if (ahead > width || ahead < step) break;
                pivots.score[pivots.size++] = static_cast<Raw>(low + ahead);
            }
            Count counts[kPivots];
            NEURONLLM_TRY(count(
                [&](Count* device) {
                    return launch(count_scores_kernel<Raw>, scanning(x_.columns), kThreads, stream_, data, x_.columns,
                                  x_.infinity, end, pivots, device);
                },
                counts));
            for (int i = 0; i < pivots.size; ++i) {
                if (static_cast<std::int64_t>(counts[i]) >= k) {
                    low = pivots.score[i];
                } else {
                    high = static_cast<Raw>(pivots.score[i] - 1);
                    *above = static_cast<std::int64_t>(counts[i]);  // reach high + 1, and so are above any lower score
                    break;
                }
            }
        }
        *score = low;
        return cudaSuccess;
    }

    // The least limit with `wanted` elements of this score in front of it.
    cudaError_t last_tie(const Raw* data, int end, Raw score, std::int64_t wanted, std::int64_t* limit) {
        std::int64_t low = 0, high = x_.columns,
                     before = 0;  // fewer than wanted in front of low, enough in front of high
        while (high - low > 1) {
            const std::int64_t step = std::max<std::int64_t>((high - low + kPivots - 1) / kPivots, 1);
            Pivots<Raw> pivots{};
            for (std::int64_t at = low + step; at < high && pivots.size < kPivots; at += step) {
                pivots.index[pivots.size++] = at;
            }
            Count counts[kPivots];
            NEURONLLM_TRY(count(
                [&](Count* device) {
                    return launch(count_ties_kernel<Raw>, scanning(high - low), kThreads, stream_, data, low, high,
                                  x_.infinity, end, score, pivots, device);
                },
                counts));
            const std::int64_t known = before;
            for (int i = 0; i < pivots.size; ++i) {
                const std::int64_t in_front = known + static_cast<std::int64_t>(counts[i]);
                if (in_front >= wanted) {
                    high = pivots.index[i];
                    break;
                }
                low = pivots.index[i];
                before = in_front;
            }
        }
        *limit = high;
        return cudaSuccess;
    }

    template <typename Launch>
    cudaError_t count(const Launch& launch_it, Count* counts) {
        for (int i = 0; i < kPivots; ++i) counts[i] = 0;
        NEURONLLM_TRY(write(counts_, counts, kPivots));
        NEURONLLM_TRY(launch_it(counts_));
        return read(counts, counts_, kPivots);
    }

    dim3 scanning(std::int64_t n) const {
        return dim3(static_cast<unsigned>(std::clamp<std::int64_t>(n / kThreads, 1, resident_)));
    }

    Matrix<Raw> x_;
    std::int64_t k_[2];
    cudaStream_t stream_;
    unsigned resident_;
    std::int64_t sample_size_, capacity_, rank_[2];

    std::vector<Control<Raw>> found_;  // on the host
    Control<Raw>* controls_;
    Lists<Raw> lists_;
    std::uint64_t* sorting_[4];
    std::int64_t* begins_;
    Count* counts_;
    char* temporary_;
    std::size_t temporary_bytes_ = 0;
};

template <typename Raw>
cudaError_t select(const Matrix<Raw>& x, std::int64_t n_largest, std::int64_t n_smallest, void* const* values,
                   std::int64_t* const* indices, std::int64_t* n_nan, void* workspace, std::size_t* bytes,
                   void* stream) {
    Selection<Raw> selection(x, n_largest, n_smallest, static_cast<cudaStream_t>(stream));
    NEURONLLM_TRY(selection.allocate(workspace, bytes));
    return workspace ? selection.run(values, indices, n_nan) : cudaSuccess;
}

}  // namespace
}  // namespace neuronllm

#define NEURONLLM_EXPORT extern "C" __attribute__((visibility("default")))

NEURONLLM_EXPORT int neuronllm_select_cuda(const void* data, int dtype, int64_t rows, int64_t columns,
                                           int64_t row_stride, int64_t n_largest, int64_t n_smallest,
                                           void* largest_values, int64_t* largest_indices, void* smallest_values,
                                           int64_t* smallest_indices, int64_t* n_nan, void* workspace, size_t* bytes,
                                           void* stream) {
    using neuronllm::Matrix;
    void* const values[2] = {largest_values, smallest_values};
    std::int64_t* const indices[2] = {largest_indices, smallest_indices};
    const auto select = [&](auto infinity) {
        using Raw = decltype(infinity);
        const Matrix<Raw> x{static_cast<const Raw*>(data), rows, columns, row_stride, infinity};
        return neuronllm::select(x, n_largest, n_smallest, values, indices, n_nan, workspace, bytes, stream);
    };
    if (rows < 1 || columns < 1 || n_largest < 0 || n_smallest < 0 || std::max(n_largest, n_smallest) > columns) {
        return cudaErrorInvalidValue;
    }
    switch (dtype) {
        case 0:
            return select(std::uint16_t{0x7c00});
        case 1:
            return select(std::uint16_t{0x7f80});
        case 2:
            return select(std::uint32_t{0x7f800000});
        case 3:
            return select(std::uint64_t{0x7ff0000000000000});
        default:
            return cudaErrorInvalidValue;
    }
}

NEURONLLM_EXPORT const char* neuronllm_cuda_error(int error) {
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}

NEURONLLM_EXPORT int neuronllm_cuda_devices() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}
