// The loops in plain C++, written so that a compiler turns them into vector code for whatever it is told to build for.
//
// Everything is in an anonymous namespace: each unit that includes this file has copies of its own, compiled with its
// own flags.
#pragma once

#include "loops.h"

namespace neuronllm {
namespace {

template <typename Raw>
std::size_t plain_find_beyond(const Raw* data, std::size_t n, Key<Raw> magnitude) {
    for (std::size_t i = 0; i < n; i += kGroup<Raw>) {
        Raw found = 0;
        for (std::size_t j = 0; j < kGroup<Raw>; ++j) {
            const Key<Raw> x = static_cast<Key<Raw>>(data[i + j] & static_cast<Raw>(kMagnitude<Raw>));
            found = static_cast<Raw>(found | (x >= magnitude ? Raw{1} : Raw{0}));
        }
        if (found) return i;
    }
    return n;
}

template <typename Raw>
std::size_t plain_find_outside(const Raw* data, std::size_t n, Bounds<Raw> bounds) {
    for (std::size_t i = 0; i < n; i += kGroup<Raw>) {
        Raw found = 0;
        for (std::size_t j = 0; j < kGroup<Raw>; ++j) {
            const Key<Raw> x = order_of(data[i + j]);
            found =
                static_cast<Raw>(found | (x >= bounds.high ? Raw{1} : Raw{0}) | (x <= bounds.low ? Raw{1} : Raw{0}));
        }
        if (found) return i;
    }
    return n;
}

constexpr unsigned kIsHigh = 1, kIsLow = 2, kIsNan = 4;
constexpr std::uint64_t kOnes = 0x0101010101010101u, kAnyWanted = kOnes * (kIsHigh | kIsLow);

// What one element is, as a byte; for a NaN nothing else.
template <typename Raw>
std::uint8_t kind_of(Raw bits, Bounds<Raw> bounds, Key<Raw> infinity) {
    const Key<Raw> x = order_of(bits);
    const unsigned wanted = (x >= bounds.high ? kIsHigh : 0u) | (x <= bounds.low ? kIsLow : 0u);
    return static_cast<std::uint8_t>(is_nan(bits, infinity) ? kIsNan : wanted);
}

// Appends base + i for every bit i of the mask.
inline std::uint32_t* append_positions(std::uint64_t mask, std::uint32_t base, std::uint32_t* out) {
    while (mask) {
        *out++ = base + static_cast<std::uint32_t>(__builtin_ctzll(mask));
        mask &= mask - 1;
    }
    return out;
}

template <typename Raw>
Classified plain_classify(const Raw* data, std::size_t n, Bounds<Raw> bounds, Key<Raw> infinity, std::uint32_t* high,
                          std::uint32_t* low) {
    std::uint32_t *next_high = high, *next_low = low;
    std::size_t nan = 0;
    for (std::size_t i = 0; i < n; i += 64) {
        std::uint8_t kinds[64] = {};
        if (n - i >= 64) {
            for (std::size_t j = 0; j < 64; ++j) kinds[j] = kind_of(data[i + j], bounds, infinity);
        } else {
            for (std::size_t j = 0; i + j < n; ++j) kinds[j] = kind_of(data[i + j], bounds, infinity);
        }
        std::uint64_t eights[8], any = 0, nans = 0;  // eight bytes each
        __builtin_memcpy(eights, kinds, sizeof eights);
        for (std::size_t j = 0; j < 8; ++j) {
            any |= eights[j];
            nans += eights[j] / kIsNan & kOnes;
        }
        nan += static_cast<std::size_t>(nans * kOnes >> 56);  // the sum of its bytes
        if (!(any & kAnyWanted)) continue;
        for (std::size_t j = 0; j < 8; ++j) {
            if (!(eights[j] & kAnyWanted)) continue;
            for (std::size_t l = 8 * j; l < 8 * j + 8; ++l) {  // without branches: a place is kept or overwritten
                *next_high = *next_low = static_cast<std::uint32_t>(i + l);
                next_high += kinds[l] & kIsHigh;
                next_low += (kinds[l] & kIsLow) / kIsLow;
            }
        }
    }
    return {static_cast<std::size_t>(next_high - high), static_cast<std::size_t>(next_low - low), nan};
}

template <typename Raw>
std::size_t plain_block_with_nan(const Raw* data, Key<Raw> infinity, Key<Raw>* greatest, Key<Raw>* least) {
    Key<Raw> top = static_cast<Key<Raw>>(~infinity - 1), bottom = static_cast<Key<Raw>>(infinity + 1);
    std::size_t nan = 0;
    for (std::size_t j = 0; j < kGroup<Raw>; ++j) {
        const Key<Raw> x = order_of(data[j]);
        const bool is = x > infinity || x < static_cast<Key<Raw>>(~infinity);
        nan += is;
        top = !is && x > top ? x : top;
        bottom = !is && x < bottom ? x : bottom;
    }
    *greatest = top;
    *least = bottom;
    return nan;
}

template <typename Raw>
std::size_t plain_block_extremes(const Raw* data, std::size_t n_blocks, Key<Raw> infinity, Key<Raw>* greatest,
                                 Key<Raw>* least) {
    std::size_t nan = 0;
    for (std::size_t block = 0; block < n_blocks; ++block, data += kGroup<Raw>) {
        Key<Raw> top = static_cast<Key<Raw>>(-kMagnitude<Raw> - 1), bottom = kMagnitude<Raw>;
        for (std::size_t j = 0; j < kGroup<Raw>; ++j) {
            const Key<Raw> x = order_of(data[j]);
            top = x > top ? x : top;
            bottom = x < bottom ? x : bottom;
        }
        greatest[block] = top;
        least[block] = bottom;
        if (top > infinity || bottom < static_cast<Key<Raw>>(~infinity)) {  // NaNs: again, without them
            nan += plain_block_with_nan(data, infinity, greatest + block, least + block);
        }
    }
    return nan;
}

template <typename Raw>
constexpr Loops<Raw> plain_loops() {
    return {plain_find_beyond<Raw>, plain_find_outside<Raw>, plain_classify<Raw>, plain_block_extremes<Raw>};
}

}  // namespace
}  // namespace neuronllm
