// A kernel and how it is to be launched, as the host decides it: by the driver, or emulated.

#ifndef FP4DIT_GPU_LAUNCH_H_
#define FP4DIT_GPU_LAUNCH_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace fp4dit::gpu {

struct Launch {
  const char* kernel = "";  // a name of kernels.inc
  uint32_t blocks = 0;      // 0: there is nothing to do, and nothing may be launched
  uint32_t threads = 0;
  uint32_t shared_bytes = 0;
  alignas(16) uint8_t argument[256] = {};  // by value: parameter 0

  template <typename Arguments>
  void Set(const Arguments& arguments) {
    static_assert(std::is_trivially_copyable_v<Arguments>);
    static_assert(sizeof(Arguments) <= sizeof(argument));
    std::memcpy(argument, &arguments, sizeof(arguments));
  }
};

}  // namespace fp4dit::gpu

#endif  // FP4DIT_GPU_LAUNCH_H_
