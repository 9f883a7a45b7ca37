// The largest and the smallest elements of a float array, in plain C++ on raw pointers.
//
// Order: by value, then by lowest index. -0 equals +0, and values come back with the bits they had. NaN is counted and
// never selected. Everything is compared as integers, so the result does not depend on the floating-point mode of the
// caller (flush-to-zero, denormals-are-zero).
#pragma once

#include <cstdint>
#include <vector>

namespace neuronllm {

struct Selected {
    std::vector<float> values;
    std::vector<std::int64_t> indices;
};

struct Extremes {
    Selected largest;   // descending
    Selected smallest;  // ascending
    std::int64_t n_nan = 0;
    std::int64_t n_valid = 0;
};

// Both ends of data[0, n). A k above the number of valid elements gives all of them. One pass, O(k) memory.
Extremes extremes_scalar(const float* data, std::int64_t n, std::int64_t n_largest, std::int64_t n_smallest);

}  // namespace neuronllm
