#include "core/page_out.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fp4dit {

#if defined(__linux__)

void PageOut(const void* data, size_t size) {
  constexpr int kPageOut = 21;  // MADV_PAGEOUT, from Linux 5.4 on; older headers lack it
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + size) / page * page;
  if (begin < end) {
    static_cast<void>(madvise(reinterpret_cast<void*>(begin), end - begin, kPageOut));
  }
}

#else

void PageOut(const void*, size_t) {}

#endif

}  // namespace fp4dit
