// How fast memory can be read: the greatest 32-bit integer of an array, by several threads, a megabyte at a time.
//
// Eight running maxima a thread, each as wide as the machine's vectors; nothing else is done with the data.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#ifdef __AVX512F__
typedef std::int32_t Vector __attribute__((vector_size(64)));
#elif defined(__AVX2__)
typedef std::int32_t Vector __attribute__((vector_size(32)));
#else
typedef std::int32_t Vector __attribute__((vector_size(16)));
#endif

extern "C" int read_floor(const void* data, std::size_t bytes, int threads) {
    constexpr std::size_t kBlock = std::size_t{1} << 18, kLanes = sizeof(Vector) / 4, kStep = 8 * kLanes;
    const std::int32_t* x = static_cast<const std::int32_t*>(data);
    const std::size_t n = bytes / sizeof *x;
    std::atomic<std::size_t> next{0};
    std::vector<std::int32_t> greatest(static_cast<std::size_t>(threads), 0);
    const auto run = [&](int thread) {
        Vector best[8] = {};
        for (;;) {
            const std::size_t begin = next.fetch_add(kBlock), end = std::min(n, begin + kBlock);
            if (begin >= n) break;
            for (std::size_t i = begin; i + kStep <= end; i += kStep) {
#pragma GCC unroll 8
                for (std::size_t j = 0; j < 8; ++j) {
                    Vector v;
                    __builtin_memcpy(&v, x + i + j * kLanes, sizeof v);
                    best[j] = best[j] > v ? best[j] : v;
                }
            }
        }
        std::int32_t lanes[kStep];
        __builtin_memcpy(lanes, best, sizeof lanes);
        greatest[static_cast<std::size_t>(thread)] = *std::max_element(lanes, lanes + kStep);
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
    run(0);
    for (std::thread& other : others) other.join();
    return *std::max_element(greatest.begin(), greatest.end());
}
