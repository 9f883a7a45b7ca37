// The inner loops of the selection: one table of functions for each width of float and each instruction set.
//
// Only these are compiled once per instruction set. They are small, call nothing, and use no template of the standard
// library: the linker may keep any one of several copies of such a template, also one with instructions that the
// machine does not have.
#pragma once

#include <cstddef>
#include <cstdint>

#include "keys.h"

namespace neuronllm {

// Elements are searched in groups and looked at in chunks, which stay in the first-level cache.
template <typename Raw>
constexpr std::size_t kGroup = 512 / sizeof(Raw);
constexpr std::size_t kChunk = 4096;

struct Classified {
    std::size_t high, low, nan;
};

template <typename Raw>
struct Loops {
    // The first group in data[0, n) that holds an element with |x| >= magnitude (as integers); n without one. n is a
    // multiple of kGroup.
    std::size_t (*find_beyond)(const Raw* data, std::size_t n, Key<Raw> magnitude);

    // The same for an element outside (low, high). Slower, for bounds that are not on both sides of zero.
    std::size_t (*find_outside)(const Raw* data, std::size_t n, Bounds<Raw> bounds);

    // Positions in data[0, n) of the elements from bounds.high up and from bounds.low down, NaN left out and counted.
    // high and low have room for n rounded up to 64, and n is at most kChunk.
    Classified (*classify)(const Raw* data, std::size_t n, Bounds<Raw> bounds, Key<Raw> infinity, std::uint32_t* high,
                           std::uint32_t* low);

    // The greatest and the least order of each of n_blocks groups, NaN left out; (~infinity - 1, infinity + 1) for a
    // group of NaNs only. Returns the number of NaNs.
    std::size_t (*block_extremes)(const Raw* data, std::size_t n_blocks, Key<Raw> infinity, Key<Raw>* greatest,
                                  Key<Raw>* least);
};

struct LoopTables {
    Loops<std::uint16_t> half;
    Loops<std::uint32_t> single;
    Loops<std::uint64_t> wide;
};

template <typename Raw>
const Loops<Raw>& loops_of(const LoopTables& tables) {
    if constexpr (sizeof(Raw) == 2) {
        return tables.half;
    } else if constexpr (sizeof(Raw) == 4) {
        return tables.single;
    } else {
        return tables.wide;
    }
}

// nullptr where the unit was not compiled for this machine's architecture.
const LoopTables* loops_portable();
const LoopTables* loops_avx2();
const LoopTables* loops_avx512();

// The tables that NEURONLLM_SELECT_ISA asks for, or the fastest; nullptr for "scalar".
const LoopTables* active_loops();

}  // namespace neuronllm
