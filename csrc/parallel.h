// Blocks of work handed out to threads by a counter: a thread that is held up elsewhere takes fewer of them.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "select.h"

namespace neuronllm {

// Calls work(thread, block) for every block; each thread gets its blocks in rising order. The calling thread is thread
// 0 and runs `check` before each of its blocks. The first exception of any thread stops all, and is thrown here.
template <typename Work>
void for_each_block(std::size_t n_blocks, int threads, const Check& check, const Work& work) {
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex failing;
    const auto run = [&](int thread) {
        try {
            for (;;) {
                if (thread == 0) check();
                const std::size_t block = next.fetch_add(1, std::memory_order_relaxed);
                if (block >= n_blocks) return;
                work(thread, block);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(failing);
            if (!failure) failure = std::current_exception();
            next.store(n_blocks, std::memory_order_relaxed);
        }
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads && static_cast<std::size_t>(thread) < n_blocks; ++thread) {
        try {
            others.emplace_back(run, thread);
        } catch (const std::system_error&) {
            break;  // the machine has no more threads to give: the work is done by those that are there
        }
    }
    run(0);
    for (std::thread& other : others) other.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace neuronllm
