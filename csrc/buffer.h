// Memory that is not written before it is used: pages that a small result never reaches are never touched.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

namespace neuronllm {

template <typename T>
class Buffer {
    static_assert(std::is_trivially_copyable_v<T>, "elements are moved as bytes");

   public:
    Buffer() = default;
    explicit Buffer(std::size_t size) { reserve(size); }
    Buffer(Buffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~Buffer() { std::free(data_); }

    T* data() const { return data_; }
    T& operator[](std::size_t i) const { return data_[i]; }
    std::size_t capacity() const { return size_; }

    // Room for `size` elements; what was there is lost if it was too small.
    void reserve(std::size_t size) {
        if (size <= size_ && data_ != nullptr) return;
        *this = Buffer(allocate(size), size);
    }

    // Room for `size` elements, of which the first `kept` stay.
    void grow(std::size_t size, std::size_t kept) {
        if (size <= size_ && data_ != nullptr) return;
        size = std::max(size, size_ + size_ / 2);
        Buffer larger(allocate(size), size);
        if (kept > 0) std::memcpy(larger.data_, data_, kept * sizeof(T));
        *this = std::move(larger);
    }

    // The caller frees it with std::free.
    T* release() {
        size_ = 0;
        return std::exchange(data_, nullptr);
    }

   private:
    Buffer(T* data, std::size_t size) : data_(data), size_(size) {}

    static T* allocate(std::size_t size) {
        if (size > static_cast<std::size_t>(-1) / 2 / sizeof(T)) throw std::bad_alloc();
        void* memory = std::malloc(std::max<std::size_t>(size * sizeof(T), 64));
        if (memory == nullptr) throw std::bad_alloc();
        return static_cast<T*>(memory);
    }

    T* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace neuronllm
