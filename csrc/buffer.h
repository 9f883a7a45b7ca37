// Memory that is not written before it is used: pages that a small result never reaches are never touched.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace neuronllm {

// A piece of memory from malloc, of at least the size that was asked for.
struct Block {
    void* data = nullptr;
    std::size_t bytes = 0;
};

// Large blocks are kept for the next call, up to 128 MB: malloc would give them back to the system, and the page faults
// of a new one take longer than a sort in it. Calls that select few elements never have such blocks.
class BlockPool {
   public:
    Block take(std::size_t bytes) {
        const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
        if (bytes >= kLeast && lock) {
            for (Block& block : kept_) {
                if (block.bytes < bytes || block.bytes / 2 > bytes) continue;
                const Block found = block;
                block = kept_.back();
                kept_.pop_back();
                total_ -= found.bytes;
                return found;
            }
        }
        void* data = std::malloc(std::max<std::size_t>(bytes, 64));
        if (data == nullptr) throw std::bad_alloc();
        return {data, bytes};
    }

    void give(Block block) noexcept {
        const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
        const bool keep =
            lock && block.bytes >= kLeast && total_ + block.bytes <= kMost && kept_.size() < kept_.capacity();
        if (!keep) return std::free(block.data);
        kept_.push_back(block);
        total_ += block.bytes;
    }

    // Never destroyed: arrays may outlive it at the end of the program.
    static BlockPool& shared() {
        static BlockPool& pool = *new BlockPool;
        return pool;
    }

   private:
    static constexpr std::size_t kLeast = std::size_t{1} << 20, kMost = std::size_t{1} << 27;

    BlockPool() { kept_.reserve(64); }

    std::mutex mutex_;
    std::vector<Block> kept_;
    std::size_t total_ = 0;
};

template <typename T>
class Buffer {
    static_assert(std::is_trivially_copyable_v<T>, "elements are moved as bytes");

   public:
    Buffer() = default;
    explicit Buffer(std::size_t size) { reserve(size); }
    Buffer(Buffer&& other) noexcept : block_(std::exchange(other.block_, {})) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(block_, other.block_);
        return *this;
    }
    ~Buffer() {
        if (block_.data != nullptr) BlockPool::shared().give(block_);
    }

    T* data() const { return static_cast<T*>(block_.data); }
    T& operator[](std::size_t i) const { return data()[i]; }
    std::size_t capacity() const { return block_.bytes / sizeof(T); }

    // Room for `size` elements; what was there is lost if it was too small.
    void reserve(std::size_t size) {
        if (size <= capacity() && data() != nullptr) return;
        *this = Buffer();
        if (size > static_cast<std::size_t>(-1) / 2 / sizeof(T)) throw std::bad_alloc();
        block_ = BlockPool::shared().take(size * sizeof(T));
    }

    // Room for `size` elements, of which the first `kept` stay.
    void grow(std::size_t size, std::size_t kept) {
        if (size <= capacity() && data() != nullptr) return;
        Buffer larger(std::max(size, capacity() + capacity() / 2));
        if (kept > 0) std::memcpy(larger.data(), data(), kept * sizeof(T));
        *this = std::move(larger);
    }

    // The caller frees it with std::free.
    T* release() { return static_cast<T*>(std::exchange(block_, {}).data); }

   private:
    Block block_;
};

}  // namespace neuronllm
