// What the processor and the operating system let us run.

#ifndef FP4DIT_CPU_CPU_FEATURES_H_
#define FP4DIT_CPU_CPU_FEATURES_H_

namespace fp4dit {

bool CpuHasBaseline();
// AVX2 and FMA, and an operating system that saves the ymm registers.
bool CpuHasAvx2();
// The above and AVX-VNNI: dot products in 256 bits, without AVX-512.
bool CpuHasAvxVnni();
// The above without AVX-VNNI, and AVX-512 F, BW, DQ, VL and VNNI, with zmm registers saved.
bool CpuHasAvx512Vnni();

// The above, and AMX with tiles of int8 that the operating system saves. Linux only: the first call
// asks it for leave to use them.
bool CpuHasAmxInt8();

// aarch64, whose baseline has NEON.
bool CpuHasNeon();
// And the dot products of Armv8.2 (sdot).
bool CpuHasNeonDotprod();
// The above without dot products, and the matrix products of Armv8.6 (smmla).
bool CpuHasNeonI8mm();

}  // namespace fp4dit

#endif  // FP4DIT_CPU_CPU_FEATURES_H_
