// What the processor and the operating system let us run.

#ifndef FP4DIT_CPU_FEATURES_H_
#define FP4DIT_CPU_FEATURES_H_

namespace fp4dit {

bool CpuHasBaseline();
// AVX2 and FMA, and an operating system that saves the ymm registers.
bool CpuHasAvx2();

}  // namespace fp4dit

#endif  // FP4DIT_CPU_FEATURES_H_
