#include "gpu/emulation/emulate.h"

#include <cstring>

#include "gpu/emulation/block_state.h"
#include "gpu/kernels/attention.cu"
#include "gpu/kernels/dequantize.cu"
#include "gpu/kernels/hadamard.cu"
#include "gpu/kernels/hadamard_quantize.cu"
#include "gpu/kernels/linear.cu"
#include "gpu/kernels/linear_decode.cu"
#include "gpu/kernels/linear_fold.cu"
#include "gpu/kernels/linear_plain.cu"
#include "gpu/kernels/norm_quantize.cu"
#include "gpu/kernels/quantize.cu"
#include "gpu/kernels/unpack.cu"

namespace {

using namespace fp4dit::gpu;

struct Kernel {
  const char* name;
  void (*body)(const void* argument);
};

#define FP4DIT_GPU_KERNEL(name, Arguments) \
  {#name, [](const void* argument) { name(*static_cast<const Arguments*>(argument)); }},
constexpr Kernel kKernels[] = {
#include "gpu/kernels.inc"
};
#undef FP4DIT_GPU_KERNEL

}  // namespace

const char* fp4dit_emulate(const char* kernel, uint32_t blocks, uint32_t threads,
                           uint32_t shared_bytes, void** parameters, uint32_t seed) {
  for (const Kernel& k : kKernels) {
    if (std::strcmp(k.name, kernel) != 0) continue;
    if (threads == 0 || threads % fp4dit::emulation::kLanes != 0) return "no whole warps";
    fp4dit::emulation::BlockState state(static_cast<int>(threads), shared_bytes, seed);
    for (uint32_t b = 0; b < blocks; ++b) {
      if (const char* error = state.Run(b, k.body, parameters[0])) return error;
    }
    return nullptr;
  }
  return "there is no such kernel";
}

const char* fp4dit_emulated_kernel(const char* name) {
  for (const Kernel& k : kKernels) {
    if (std::strcmp(k.name, name) == 0) return k.name;
  }
  return nullptr;
}
