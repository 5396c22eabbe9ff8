// What the kernels need of a GPU: the real thing under nvcc or NVRTC, the emulated thread block of
// emulation/block.h under a host compiler. Kernels include this, and nothing of CUDA.
//
// Results must have the bits of the CPU's kernels, so arithmetic of floats that is not exact is
// written with the functions below, which no compiler contracts, and is compiled without fast math.

#ifndef FP4DIT_GPU_DEVICE_H_
#define FP4DIT_GPU_DEVICE_H_

#include "gpu/types.h"

#if defined(__CUDACC__)

// A kernel's function, launched with at most so many threads a block.
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")

struct alignas(16) Word4 {
  uint32_t word[4];
};

extern __shared__ __align__(16) uint8_t fp4dit_shared[];
// The block's shared memory: as many bytes as the launch said.
DEVICE uint8_t* Shared() { return fp4dit_shared; }
DEVICE int Thread() { return static_cast<int>(threadIdx.x); }
DEVICE int Threads() { return static_cast<int>(blockDim.x); }
DEVICE int64_t Block() { return blockIdx.x; }
// Waits for all threads of the block.
DEVICE void Sync() { __syncthreads(); }
// Waits for all threads of the warp.
DEVICE void SyncWarp() { __syncwarp(); }
DEVICE uint32_t ShuffleXor(uint32_t v, int mask) { return __shfl_xor_sync(~0u, v, mask); }
DEVICE uint32_t Shuffle(uint32_t v, int lane) { return __shfl_sync(~0u, v, lane); }
// A bit for each lane of the warp.
DEVICE uint32_t Ballot(bool v) { return __ballot_sync(~0u, v); }

DEVICE float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float Mul(float a, float b) { return __fmul_rn(a, b); }
DEVICE float Add(float a, float b) { return __fadd_rn(a, b); }
DEVICE float Sub(float a, float b) { return __fsub_rn(a, b); }
DEVICE float Div(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float Sqrt(float v) { return __fsqrt_rn(v); }
DEVICE float ToFloat(int32_t v) { return __int2float_rn(v); }
DEVICE float AsFloat(uint32_t v) { return __uint_as_float(v); }
DEVICE uint32_t AsBits(float v) { return __float_as_uint(v); }
// The float of the bits of a float16.
DEVICE float HalfToFloat(uint16_t bits) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
  return r;
}
// Four bytes of the eight of a (0 to 3) and b (4 to 7), chosen by the lower four nibbles of
// `select`, 0 to 7 each.
DEVICE uint32_t Permute(uint32_t a, uint32_t b, uint32_t select) {
  return __byte_perm(a, b, select);
}

// Copies kBytes, 8 or 16, to shared memory, or zeros if not `live`; both ends aligned to as many.
// They have landed when a wait of this thread says so, and other threads see them after a Sync.
template <int kBytes>
DEVICE void CopyAsync(void* to, const void* from, bool live) {
#if __CUDA_ARCH__ >= 800
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
                 "r"(live ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(at), "l"(from),
                 "r"(live ? 8 : 0)
                 : "memory");
  }
#else
  UNROLL for (int i = 0; i < kBytes / 8; ++i) {
    static_cast<uint64_t*>(to)[i] = live ? static_cast<const uint64_t*>(from)[i] : 0;
  }
#endif
}
// Closes a group of the copies of this thread since the last one.
DEVICE void CommitCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits for all groups of this thread's copies but the last `kLeft`.
template <int kLeft>
DEVICE void WaitCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

// Four matrices of 8 rows of 16 bytes: lane l gives the address of row l % 8 of matrix l / 8 in
// shared memory, and gets the four bytes from 4 * (l % 4) of row l / 4 of each.
DEVICE void LoadMatrices(const void* row, uint32_t (&r)[4]) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
// The same of matrices of 16-bit elements, transposed: lane l gets the elements 2 * (l % 4) and the
// next one of column l / 4 of each.
DEVICE void LoadMatricesTransposed(const void* row, uint32_t (&r)[4]) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

// c[16][8] += a[16][32] * b[32][8], bytes to exact int32: mma.m16n8k32, whose fragments PTX
// defines. Lane l = 4 * g + t has, four inputs a register from 4 * t on, a[0]: row g, a[1]: row
// g + 8, a[2] and a[3]: the same 16 inputs on; b[0], b[1]: column g, 16 inputs apart; c[0], c[1]:
// row g, columns 2 * t and 2 * t + 1; c[2], c[3]: row g + 8.
#if __CUDA_ARCH__ >= 800
#define FP4DIT_MMA(a_type, b_type)                                          \
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." a_type "." b_type   \
               ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#else  // sm_75 has m8n8k16
#define FP4DIT_MMA_8(a_type, b_type, first, a_part, b_part)              \
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." a_type "." b_type \
               ".s32 {%0,%1}, {%2}, {%3}, {%0,%1};"                      \
               : "+r"(c[first]), "+r"(c[first + 1])                      \
               : "r"(a[a_part]), "r"(b[b_part]))
#define FP4DIT_MMA(a_type, b_type)       \
  FP4DIT_MMA_8(a_type, b_type, 0, 0, 0); \
  FP4DIT_MMA_8(a_type, b_type, 0, 2, 1); \
  FP4DIT_MMA_8(a_type, b_type, 2, 1, 0); \
  FP4DIT_MMA_8(a_type, b_type, 2, 3, 1)
#endif
// Bytes are signed, or where kUnsignedA and kUnsignedB say so unsigned. Sums are modulo 2^32.
template <bool kUnsignedA = false, bool kUnsignedB = false>
DEVICE void Mma(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kUnsignedA && kUnsignedB) {
    FP4DIT_MMA("u8", "u8");
  } else if constexpr (kUnsignedA) {
    FP4DIT_MMA("u8", "s8");
  } else if constexpr (kUnsignedB) {
    FP4DIT_MMA("s8", "u8");
  } else {
    FP4DIT_MMA("s8", "s8");
  }
}

#else
#include "gpu/emulation/block.h"
#endif

#endif  // FP4DIT_GPU_DEVICE_H_
