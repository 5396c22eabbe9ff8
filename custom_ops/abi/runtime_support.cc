// What compilers take from the C++ runtime for code without exceptions: allocation and the guards
// of local statics. libstdc++.a's own are made to throw, and with its unwinder they would raise the
// glibc that the library needs from 2.17 to 2.35. Linked into the shared library only, not
// exported.

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <malloc.h>
#include <windows.h>
#else
#include <sched.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

// The names are the Itanium C++ ABI's.

namespace {

#if defined(_WIN32)
void* AllocateAligned(size_t alignment, size_t size) { return _aligned_malloc(size, alignment); }
void FreeAligned(void* memory) { _aligned_free(memory); }
void GiveWay() { SwitchToThread(); }
#else
void* AllocateAligned(size_t alignment, size_t size) {
  void* memory = nullptr;
  return posix_memalign(&memory, alignment, size) == 0 ? memory : nullptr;
}
void FreeAligned(void* memory) { std::free(memory); }
void GiveWay() { sched_yield(); }
#endif

}  // namespace

namespace std {
const nothrow_t nothrow = nothrow_t{};
}  // namespace std

void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return std::malloc(size == 0 ? 1 : size);
}

void* operator new(size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return AllocateAligned(static_cast<size_t>(alignment), size == 0 ? 1 : size);
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { FreeAligned(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { FreeAligned(memory); }

namespace {

// The first byte of a guard says that the static is there, and its lowest bit is what callers test;
// the rest is the implementation's.
constexpr uint8_t kReady = 1;
constexpr uint8_t kFree = 0;
constexpr uint8_t kBusy = 1;

uint8_t* Ready(uint64_t* guard) { return reinterpret_cast<uint8_t*>(guard); }
uint8_t* Busy(uint64_t* guard) { return Ready(guard) + 1; }

}  // namespace

extern "C" int __cxa_guard_acquire(uint64_t* guard) {
  while (__atomic_load_n(Ready(guard), __ATOMIC_ACQUIRE) != kReady) {
    if (__atomic_exchange_n(Busy(guard), kBusy, __ATOMIC_ACQUIRE) == kFree) {
      // Another thread may have finished between the two lines above.
      if (__atomic_load_n(Ready(guard), __ATOMIC_ACQUIRE) != kReady) return 1;
      __atomic_store_n(Busy(guard), kFree, __ATOMIC_RELEASE);
      return 0;
    }
    GiveWay();
  }
  return 0;
}

extern "C" void __cxa_guard_release(uint64_t* guard) {
  __atomic_store_n(Ready(guard), kReady, __ATOMIC_RELEASE);
  __atomic_store_n(Busy(guard), kFree, __ATOMIC_RELEASE);
}
