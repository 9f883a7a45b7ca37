// The loops for AVX-512 (F, BW, DQ, VL): 64-byte vectors, comparisons that give one bit an element.
#include "loops_plain.h"

namespace neuronllm {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
}  // namespace neuronllm

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 11 and 12 warn of their own header
#endif
#include <immintrin.h>

namespace neuronllm {
namespace {

// What the loops need of a vector, for each width of element.
template <typename Raw>
struct Vector;

template <>
struct Vector<std::uint16_t> {
    static __m512i all(std::int16_t x) { return _mm512_set1_epi16(x); }
    static __m512i sign(__m512i x) { return _mm512_srai_epi16(x, 15); }
    static __m512i max(__m512i a, __m512i b) { return _mm512_max_epi16(a, b); }
    static __m512i min(__m512i a, __m512i b) { return _mm512_min_epi16(a, b); }
    static std::uint64_t at_least(__m512i a, __m512i b) { return _mm512_cmpge_epi16_mask(a, b); }
    static std::int16_t greatest(__m512i x) {
        // The least of eight unsigned numbers is one instruction.
        const __m128i flip = _mm_set1_epi16(0x7fff);
        return static_cast<std::int16_t>(least_unsigned(_mm_xor_si128(fold<true>(x), flip)) ^ 0x7fff);
    }
    static std::int16_t least(__m512i x) {
        const __m128i flip = _mm_set1_epi16(-0x8000);
        return static_cast<std::int16_t>(least_unsigned(_mm_xor_si128(fold<false>(x), flip)) ^ 0x8000);
    }

   private:
    template <bool kGreatest>
    static __m128i fold(__m512i x) {
        const __m256i a = _mm512_castsi512_si256(x), b = _mm512_extracti64x4_epi64(x, 1);
        const __m256i half = kGreatest ? _mm256_max_epi16(a, b) : _mm256_min_epi16(a, b);
        const __m128i c = _mm256_castsi256_si128(half), d = _mm256_extracti128_si256(half, 1);
        return kGreatest ? _mm_max_epi16(c, d) : _mm_min_epi16(c, d);
    }
    static int least_unsigned(__m128i x) { return _mm_extract_epi16(_mm_minpos_epu16(x), 0); }
};

template <>
struct Vector<std::uint32_t> {
    static __m512i all(std::int32_t x) { return _mm512_set1_epi32(x); }
    static __m512i sign(__m512i x) { return _mm512_srai_epi32(x, 31); }
    static __m512i max(__m512i a, __m512i b) { return _mm512_max_epi32(a, b); }
    static __m512i min(__m512i a, __m512i b) { return _mm512_min_epi32(a, b); }
    static std::uint64_t at_least(__m512i a, __m512i b) { return _mm512_cmpge_epi32_mask(a, b); }
    static std::int32_t greatest(__m512i x) { return _mm512_reduce_max_epi32(x); }
    static std::int32_t least(__m512i x) { return _mm512_reduce_min_epi32(x); }
};

template <>
struct Vector<std::uint64_t> {
    static __m512i all(std::int64_t x) { return _mm512_set1_epi64(x); }
    static __m512i sign(__m512i x) { return _mm512_srai_epi64(x, 63); }
    static __m512i max(__m512i a, __m512i b) { return _mm512_max_epi64(a, b); }
    static __m512i min(__m512i a, __m512i b) { return _mm512_min_epi64(a, b); }
    static std::uint64_t at_least(__m512i a, __m512i b) { return _mm512_cmpge_epi64_mask(a, b); }
    static std::int64_t greatest(__m512i x) { return _mm512_reduce_max_epi64(x); }
    static std::int64_t least(__m512i x) { return _mm512_reduce_min_epi64(x); }
};

template <typename Raw>
constexpr std::size_t kLanes = 64 / sizeof(Raw);

template <typename Raw>
__m512i magnitudes(__m512i x) {
    return _mm512_and_si512(x, Vector<Raw>::all(kMagnitude<Raw>));
}

template <typename Raw>
__m512i orders(__m512i x) {
    return _mm512_ternarylogic_epi64(x, Vector<Raw>::sign(x), Vector<Raw>::all(kMagnitude<Raw>), 0x78);  // a ^ (b & c)
}

template <typename Raw>
__m512i load(const Raw* data) {
    return _mm512_loadu_si512(data);
}

template <typename Raw>
std::size_t find_beyond(const Raw* data, std::size_t n, Key<Raw> magnitude) {
    using V = Vector<Raw>;
    const __m512i bound = V::all(magnitude);
    for (std::size_t i = 0; i < n; i += kGroup<Raw>) {
        __m512i a = magnitudes<Raw>(load(data + i)), b = magnitudes<Raw>(load(data + i + kLanes<Raw>));
        for (std::size_t j = 2 * kLanes<Raw>; j < kGroup<Raw>; j += 2 * kLanes<Raw>) {
            a = V::max(a, magnitudes<Raw>(load(data + i + j)));
            b = V::max(b, magnitudes<Raw>(load(data + i + j + kLanes<Raw>)));
        }
        if (V::at_least(V::max(a, b), bound)) return i;
    }
    return n;
}

template <typename Raw>
std::size_t find_outside(const Raw* data, std::size_t n, Bounds<Raw> bounds) {
    using V = Vector<Raw>;
    const __m512i high = V::all(bounds.high), low = V::all(bounds.low);
    for (std::size_t i = 0; i < n; i += kGroup<Raw>) {
        __m512i top = orders<Raw>(load(data + i)), bottom = top;
        for (std::size_t j = kLanes<Raw>; j < kGroup<Raw>; j += kLanes<Raw>) {
            const __m512i x = orders<Raw>(load(data + i + j));
            top = V::max(top, x);
            bottom = V::min(bottom, x);
        }
        if (V::at_least(top, high) | V::at_least(low, bottom)) return i;
    }
    return n;
}

// As in plain code, but compressed by the machine where a mask is full enough to pay for it.
std::uint32_t* append_mask(std::uint64_t mask, std::uint32_t base, std::uint32_t* out) {
    if (__builtin_popcountll(mask) <= 6) return append_positions(mask, base, out);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int i = 0; i < 64; i += 16, mask >>= 16) {
        const __mmask16 part = static_cast<__mmask16>(mask);
        const __m512i at = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(base) + i));
        _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(part, at));
        out += __builtin_popcount(part);
    }
    return out;
}

template <typename Raw>
Classified classify(const Raw* data, std::size_t n, Bounds<Raw> bounds, Key<Raw> infinity, std::uint32_t* high,
                    std::uint32_t* low) {
    using V = Vector<Raw>;
    const __m512i upper = V::all(bounds.high), lower = V::all(bounds.low);
    const __m512i first_nan = V::all(static_cast<Key<Raw>>(infinity + 1));
    std::uint32_t *next_high = high, *next_low = low;
    std::size_t nan = 0, i = 0;
    for (; i + 64 <= n; i += 64) {
        std::uint64_t is_high = 0, is_low = 0, nans = 0;
        for (std::size_t j = 0; j < 64; j += kLanes<Raw>) {
            const __m512i x = load(data + i + j), order = orders<Raw>(x);
            is_high |= V::at_least(order, upper) << j;
            is_low |= V::at_least(lower, order) << j;
            nans |= V::at_least(magnitudes<Raw>(x), first_nan) << j;
        }
        nan += static_cast<std::size_t>(__builtin_popcountll(nans));
        is_high &= ~nans;
        is_low &= ~nans;
        if (!(is_high | is_low)) continue;
        next_high = append_mask(is_high, static_cast<std::uint32_t>(i), next_high);
        next_low = append_mask(is_low, static_cast<std::uint32_t>(i), next_low);
    }
    for (; i < n; ++i) {
        const Key<Raw> order = order_of(data[i]);
        if (is_nan(data[i], infinity)) {
            ++nan;
            continue;
        }
        if (order >= bounds.high) *next_high++ = static_cast<std::uint32_t>(i);
        if (order <= bounds.low) *next_low++ = static_cast<std::uint32_t>(i);
    }
    return {static_cast<std::size_t>(next_high - high), static_cast<std::size_t>(next_low - low), nan};
}

template <typename Raw>
std::size_t block_extremes(const Raw* data, std::size_t n_blocks, Key<Raw> infinity, Key<Raw>* greatest,
                           Key<Raw>* least) {
    using V = Vector<Raw>;
    std::size_t nan = 0;
    for (std::size_t block = 0; block < n_blocks; ++block, data += kGroup<Raw>) {
        __m512i top = orders<Raw>(load(data)), bottom = top;
        for (std::size_t j = kLanes<Raw>; j < kGroup<Raw>; j += kLanes<Raw>) {
            const __m512i x = orders<Raw>(load(data + j));
            top = V::max(top, x);
            bottom = V::min(bottom, x);
        }
        greatest[block] = V::greatest(top);
        least[block] = V::least(bottom);
        if (greatest[block] > infinity || least[block] < static_cast<Key<Raw>>(~infinity)) {
            nan += plain_block_with_nan(data, infinity, greatest + block, least + block);
        }
    }
    return nan;
}

template <typename Raw>
constexpr Loops<Raw> loops_512() {
    return {find_beyond<Raw>, find_outside<Raw>, classify<Raw>, block_extremes<Raw>};
}

}  // namespace

const LoopTables* loops_avx512() {
    static constexpr LoopTables tables = {loops_512<std::uint16_t>(), loops_512<std::uint32_t>(),
                                          loops_512<std::uint64_t>()};
    return &tables;
}
#else
const LoopTables* loops_avx512() { return nullptr; }
#endif

}  // namespace neuronllm
