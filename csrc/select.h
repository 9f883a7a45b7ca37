// The largest and the smallest elements of an array, in plain C++ on raw pointers.
//
// Order: by value, then by lowest index. -0 equals +0, and values come back with the bits they had. NaN is counted and
// never selected. A count above the number of valid elements gives all of them. Everything is compared as integers, so
// the result depends neither on the number of threads, nor on the instruction set, nor on the floating-point mode of
// the caller (flush-to-zero, denormals-are-zero).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "buffer.h"

namespace neuronllm {

enum class DType { f16, bf16, f32, f64 };

std::size_t size_of(DType dtype);

// n elements that lie `stride` bytes apart: any stride, also 0 or negative, and any alignment.
struct View {
    const void* data;
    DType dtype;
    std::int64_t n;
    std::int64_t stride;
};

struct RowsView {
    const void* data;
    DType dtype;
    std::int64_t rows, columns;
    std::int64_t row_stride, column_stride;  // bytes
};

// Called now and then by the calling thread; what it throws ends the work of all threads and reaches the caller.
using Check = std::function<void()>;

struct Options {
    std::int64_t largest = 0;
    std::int64_t smallest = 0;
    bool sorted = true;  // false: in the order of the indices
    int threads = 1;
    std::size_t block_bytes = std::size_t{1} << 20;  // what a thread takes at a time; results do not depend on it
    Check check = [] {};
};

struct Selected {
    Buffer<unsigned char> values;  // in the type of the input
    Buffer<std::int64_t> indices;
    std::size_t size = 0;
};

struct Extremes {
    Selected largest;   // descending
    Selected smallest;  // ascending
    std::int64_t n_nan = 0;
    std::int64_t n_valid = 0;
};

// Both ends of a view in one pass over the memory; O(largest + smallest) extra memory up to 3 % of the elements.
Extremes extremes(const View& view, const Options& options);

// The oracle: one thread, one heap an end, nothing clever.
Extremes extremes_scalar(const View& view, const Options& options);

// Both ends of every row. The outputs have `rows` rows of min(largest, columns) and min(smallest, columns) places; a
// row with fewer valid elements is filled up with index -1 and NaN. n_nan has one place a row.
struct RowsOutput {
    void* largest_values;
    std::int64_t* largest_indices;
    void* smallest_values;
    std::int64_t* smallest_indices;
    std::int64_t* n_nan;
};
void extremes_rows(const RowsView& view, const Options& options, const RowsOutput& output);

// The extremes of an array that comes in parts, in any order: files, shards, ranks.
class Stream {
   public:
    Stream(DType dtype, std::int64_t largest, std::int64_t smallest);
    Stream(Stream&&) noexcept;
    ~Stream();

    DType dtype() const { return dtype_; }
    // The elements of `view` get the indices base, base + 1, ... `options` gives threads and check only.
    void push(const View& view, std::int64_t base, const Options& options);
    // Takes over what another stream of the same dtype and counts has seen.
    void merge(const Stream& other);
    Extremes result(bool sorted) const;

   private:
    template <typename Raw>
    struct State;
    struct AnyState;
    template <typename Visit>
    decltype(auto) visit(Visit visit) const;

    DType dtype_;
    std::int64_t largest_, smallest_;
    std::unique_ptr<AnyState> state_;
};

// Names of the instruction sets that were built and that this machine has, the slowest first; "scalar" is the oracle.
std::vector<std::string> instruction_sets();

// The one that is used: NEURONLLM_SELECT_ISA, or the fastest. Throws std::invalid_argument for a name that is not
// there.
std::string instruction_set();

}  // namespace neuronllm
