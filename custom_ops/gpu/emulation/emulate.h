// Runs a kernel of kernels.inc on the CPU.

#ifndef FP4DIT_GPU_EMULATION_EMULATE_H_
#define FP4DIT_GPU_EMULATION_EMULATE_H_

#include <cstdint>

extern "C" {

// As cuLaunchKernel of a grid of one dimension: parameters[0] is the address of the kernel's
// argument. Null, or what was wrong. The order of threads follows from `seed`.
const char* fp4dit_emulate(const char* kernel, uint32_t blocks, uint32_t threads,
                           uint32_t shared_bytes, void** parameters, uint32_t seed);

// The name of a kernel of kernels.inc, as long as the process lives; null: there is none.
const char* fp4dit_emulated_kernel(const char* name);

}  // extern "C"

#endif  // FP4DIT_GPU_EMULATION_EMULATE_H_
