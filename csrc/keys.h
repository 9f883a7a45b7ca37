// Floats as integers: their bits, and signed integers that are ordered as the floats are.
//
// bits -> order   negative floats count downwards in their bits, so all but the sign is flipped: -0 becomes -1.
// order -> key    -1 becomes 0: -0 equals +0. No key is -1.
// Infinity is the largest key that is not NaN, ~infinity the key of -infinity; NaNs lie outside, on either side.
#pragma once

#include <climits>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace neuronllm {

template <typename Raw>
using Key = std::make_signed_t<Raw>;

template <typename Raw>
constexpr Key<Raw> kMagnitude = std::numeric_limits<Key<Raw>>::max();  // every bit but the sign

// Always inlined: a copy compiled for one instruction set must not stand in for another unit's.
template <typename Raw>
[[gnu::always_inline]] constexpr inline Key<Raw> order_of(Raw bits) {
    const Key<Raw> x = static_cast<Key<Raw>>(bits);
    return static_cast<Key<Raw>>(x ^ ((x >> (sizeof(Raw) * CHAR_BIT - 1)) & kMagnitude<Raw>));
}

template <typename Raw>
[[gnu::always_inline]] constexpr inline Key<Raw> key_of(Raw bits) {
    const Key<Raw> order = order_of(bits);
    return static_cast<Key<Raw>>(order + (order == -1));
}

template <typename Raw>
[[gnu::always_inline]] constexpr inline bool is_nan(Raw bits, Key<Raw> infinity) {
    return static_cast<Key<Raw>>(bits & static_cast<Raw>(kMagnitude<Raw>)) > infinity;
}

// What is wanted, as orders: those from `high` up and those from `low` down. NaNs are outside (low, high) by
// themselves, because high is at most infinity + 1 and low at least ~infinity - 1.
template <typename Raw>
struct Bounds {
    Key<Raw> high, low;

    // From keys: +0 as the least that is wanted takes -0 along, and -1, which is no key, does not.
    static constexpr Bounds of_keys(Key<Raw> high, Key<Raw> low) {
        return {high == 0 ? Key<Raw>{-1} : high, low == -1 ? Key<Raw>{-2} : low};
    }
};

}  // namespace neuronllm
