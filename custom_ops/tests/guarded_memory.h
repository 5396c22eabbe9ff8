// Memory whose last byte is followed by a page that may not be touched, not even read.

#ifndef FP4DIT_TESTS_GUARDED_MEMORY_H_
#define FP4DIT_TESTS_GUARDED_MEMORY_H_

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "check.h"

namespace fp4dit::test {

// Pages of the system's: null if there are none; whether a page can be closed; giving them back.
#if defined(_WIN32)
inline size_t PageSize() {
  SYSTEM_INFO info;
  GetSystemInfo(&info);
  return info.dwPageSize;
}
inline void* MapPages(size_t size) {
  return VirtualAlloc(nullptr, size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}
inline bool ClosePage(void* page) {
  DWORD before;
  return VirtualProtect(page, PageSize(), PAGE_NOACCESS, &before) != 0;
}
inline void UnmapPages(void* pages, size_t) { VirtualFree(pages, 0, MEM_RELEASE); }
#else
inline size_t PageSize() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
inline void* MapPages(size_t size) {
  void* const pages =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return pages == MAP_FAILED ? nullptr : pages;
}
inline bool ClosePage(void* page) { return mprotect(page, PageSize(), PROT_NONE) == 0; }
inline void UnmapPages(void* pages, size_t size) { munmap(pages, size); }
#endif

class GuardedMemory {
 public:
  explicit GuardedMemory(size_t capacity) {
    const size_t page = PageSize();
    capacity_ = (capacity + kFence + page - 1) / page * page;
    base_ = static_cast<uint8_t*>(MapPages(capacity_ + page));
    CHECK(base_ != nullptr, "no %zu bytes", capacity_);
    CHECK(ClosePage(base_ + capacity_), "a page that stays open");
  }
  ~GuardedMemory() { UnmapPages(base_, capacity_ + PageSize()); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  // Room for `size` bytes, filled with kUntouched: it ends at the guard page, or as close to it as
  // `alignment` allows.
  uint8_t* Place(size_t size, size_t alignment) {
    CHECK(size + kFence <= capacity_, "%zu bytes of %zu", size, capacity_);
    data_ = base_ + (capacity_ - size) / alignment * alignment;
    size_ = size;
    std::memset(data_ - kFence / 2, kUntouched, size_t(base_ + capacity_ - data_) + kFence / 2);
    return data_;
  }
  template <typename T>
  T* Place(size_t count) {
    return reinterpret_cast<T*>(Place(count * sizeof(T), alignof(T)));
  }
  template <typename T>
  T* Copy(const T* items, size_t count) {
    T* const to = Place<T>(count);
    std::memcpy(to, items, count * sizeof(T));
    return to;
  }

  // Whether nobody wrote next to the memory last placed.
  bool FenceIsWhole() const {
    for (const uint8_t* p = data_ - kFence / 2; p < data_; ++p) {
      if (*p != kUntouched) return false;
    }
    for (const uint8_t* p = data_ + size_; p < base_ + capacity_; ++p) {
      if (*p != kUntouched) return false;
    }
    return true;
  }

  static constexpr uint8_t kUntouched = 0xa5;

 private:
  static constexpr size_t kFence = 512;

  uint8_t* base_ = nullptr;
  uint8_t* data_ = nullptr;
  size_t capacity_ = 0;
  size_t size_ = 0;
};

}  // namespace fp4dit::test

#endif  // FP4DIT_TESTS_GUARDED_MEMORY_H_
