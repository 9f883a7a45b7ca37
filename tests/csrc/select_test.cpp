// The C++ selection against its scalar twin, without Python: what `make sanitize` runs under the sanitizers.
//
//     select_test [seconds] [seed]     random cases until the time is up; prints how many, exits with 1 at a difference
#include "../../csrc/select.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>

using namespace neuronllm;

namespace {

std::mt19937_64 rng;

std::size_t below(std::size_t n) { return n == 0 ? 0 : rng() % n; }

// Bits of a dtype: every pattern may come, NaNs, infinities and denormals among them.
std::uint64_t draw(int kind, std::size_t i, std::size_t n, DType dtype) {
    const std::size_t size = size_of(dtype);
    const std::uint64_t all = size == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * size)) - 1;
    const std::uint64_t sign = (all >> 1) + 1, one = dtype == DType::f16    ? 0x3c00
                                                     : dtype == DType::bf16 ? 0x3f80
                                                     : dtype == DType::f32  ? 0x3f800000
                                                                            : 0x3ff0000000000000;
    const std::uint64_t nan = dtype == DType::f16    ? 0x7e00
                              : dtype == DType::bf16 ? 0x7fc0
                              : dtype == DType::f32  ? 0x7fc00000
                                                     : 0x7ff8000000000000;
    switch (kind) {
        case 0:
            return rng() & all;
        case 1:  // a narrow band of magnitudes, both signs
            return ((one + (rng() & 0x3f)) | (rng() & 1 ? sign : 0)) & all;
        case 2:
            return one;
        case 3:
            return rng() & 1 ? 0 : sign;
        case 4:
            return rng() & 1 ? nan | (rng() & 1 ? sign : 0) : rng() & (all >> 1);
        case 5:
            return i * (all >> 2) / (n + 1);  // rising
        case 6:
            return (n - i) * (all >> 2) / (n + 1);
        case 7:
            return (rng() & 3) | (rng() & 1 ? sign : 0);  // denormals
        case 8:
            return rng() % 10 ? 0 : rng() & all;
        default:
            return i / 64 == n / 128 ? rng() & (all >> 1) : rng() & 0xff;
    }
}

bool is_same(const Selected& a, const Selected& b, std::size_t item) {
    return a.size == b.size && std::memcmp(a.indices.data(), b.indices.data(), a.size * 8) == 0 &&
           std::memcmp(a.values.data(), b.values.data(), a.size * item) == 0;
}

bool is_same(const Extremes& a, const Extremes& b, std::size_t item) {
    return a.n_nan == b.n_nan && a.n_valid == b.n_valid && is_same(a.largest, b.largest, item) &&
           is_same(a.smallest, b.smallest, item);
}

std::int64_t count_for(std::size_t n) {
    const std::size_t choices[] = {0, 1, below(20), n / 40, n / 3, n > 0 ? n - 1 : 0, n, n + 5};
    return static_cast<std::int64_t>(choices[below(8)]);
}

// One random array, laid out at random, selected from in every way.
bool run_case() {
    const DType dtype = static_cast<DType>(below(4));
    const std::size_t item = size_of(dtype), sizes[] = {below(70), below(1200), 4090 + below(12), below(200000)};
    const std::size_t n = sizes[std::min(below(4), below(4))];  // mostly small
    const std::size_t gap = below(3) == 0 ? below(3 * item) : 0, stride = item + gap,
                      shift = below(4) == 0 ? 1 + below(8) : 0;
    const int kind = static_cast<int>(below(10));
    std::vector<unsigned char> memory(shift + n * stride + 1);  // exactly as large as needed: a read too far is seen
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t bits = draw(kind, i, n, dtype);
        std::memcpy(memory.data() + shift + i * stride, &bits, item);
    }
    View view{memory.data() + shift, dtype, static_cast<std::int64_t>(n), static_cast<std::int64_t>(stride)};
    if (n > 0 && below(5) == 0) {  // backwards
        view.data = memory.data() + shift + (n - 1) * stride;
        view.stride = -view.stride;
    }
    Options options;
    options.largest = count_for(n);
    options.smallest = count_for(n);
    options.sorted = below(4) > 0;
    options.threads = static_cast<int>(1 + below(4));
    options.block_bytes = std::size_t{1} << (9 + below(12));
    const Extremes expected = extremes_scalar(view, options), found = extremes(view, options);
    if (!is_same(expected, found, item)) return false;

    Stream left(dtype, options.largest, options.smallest), right(dtype, options.largest, options.smallest);
    for (std::size_t begin = 0; begin < n;) {
        const std::size_t size = 1 + below(n - begin);
        View part = view;
        part.data = static_cast<const char*>(view.data) + static_cast<std::int64_t>(begin) * view.stride;
        part.n = static_cast<std::int64_t>(size);
        (below(2) ? left : right).push(part, static_cast<std::int64_t>(begin), options);
        begin += size;
    }
    left.merge(right);
    if (!is_same(expected, left.result(options.sorted), item)) return false;

    const std::size_t rows = 1 + below(5), columns = n / rows;
    const RowsView matrix{view.data,
                          dtype,
                          static_cast<std::int64_t>(rows),
                          static_cast<std::int64_t>(columns),
                          static_cast<std::int64_t>(columns) * view.stride,
                          view.stride};
    const std::size_t wide = std::min<std::size_t>(static_cast<std::size_t>(options.largest), columns);
    const std::size_t narrow = std::min<std::size_t>(static_cast<std::size_t>(options.smallest), columns);
    std::vector<std::uint64_t> values(rows * wide * item / 8 + 1), low_values(rows * narrow * item / 8 + 1);
    std::vector<std::int64_t> indices(rows * wide + 1), low_indices(rows * narrow + 1), n_nan(rows);
    extremes_rows(matrix, options,
                  {values.data(), indices.data(), low_values.data(), low_indices.data(), n_nan.data()});
    for (std::size_t row = 0; row < rows; ++row) {
        View one = view;
        one.data = static_cast<const char*>(view.data) + static_cast<std::int64_t>(row) * matrix.row_stride;
        one.n = matrix.columns;
        const Extremes wanted = extremes_scalar(one, options);
        if (n_nan[row] != wanted.n_nan) return false;
        for (std::size_t i = 0; i < wide; ++i) {
            const std::int64_t index = i < wanted.largest.size ? wanted.largest.indices[i] : -1;
            if (indices[row * wide + i] != index) return false;
        }
        for (std::size_t i = 0; i < narrow; ++i) {
            const std::int64_t index = i < wanted.smallest.size ? wanted.smallest.indices[i] : -1;
            if (low_indices[row * narrow + i] != index) return false;
        }
    }
    return true;
}

// What `check` throws comes out, and all threads have ended.
bool stops_when_told() {
    const std::vector<float> data(100000, 1.0f);
    Options options;
    options.largest = 5;
    options.threads = 4;
    options.block_bytes = 512;
    int calls = 0;
    options.check = [&] {
        if (++calls == 3) throw std::runtime_error("stop");
    };
    try {
        extremes({data.data(), DType::f32, 100000, 4}, options);
    } catch (const std::runtime_error&) {
        return true;
    }
    return calls < 3;  // the other threads were faster
}

}  // namespace

int main(int argc, char** argv) {
    const double seconds = argc > 1 ? std::atof(argv[1]) : 10;
    const unsigned seed = argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 0;
    const auto begin = std::chrono::steady_clock::now();
    long cases = 0;
    while (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() < seconds) {
        for (const std::string& name : instruction_sets()) {
            setenv("NEURONLLM_SELECT_ISA", name.c_str(), 1);
            rng.seed(seed + static_cast<unsigned>(cases));
            if (!run_case() || !stops_when_told()) {
                std::printf("case %ld of seed %u differs on %s\n", cases, seed, name.c_str());
                return 1;
            }
        }
        ++cases;
    }
    std::printf("%ld cases on each of %zu instruction sets, no difference\n", cases, instruction_sets().size());
    return 0;
}
