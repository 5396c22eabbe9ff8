// FpHadamardQuantize: FpHadamard, then FpQuantize, a row a block; FpGeluHadamardQuantize, of the
// GELU.

#include "gpu/kernels/quantize_group.h"
#include "gpu/kernels/rotate.h"

namespace {

using fp4dit::gpu::HadamardQuantizeArguments;

template <bool kGelu>
DEVICE void RotateAndQuantize(const HadamardQuantizeArguments& a) {
  const int warp = Thread() / 32;
  const int all = Threads() / 32;
  auto* const warps = reinterpret_cast<uint32_t*>(Shared());
  float* const rotated = a.scratch != nullptr ? a.scratch + Block() * a.parts.k
                                              : reinterpret_cast<float*>(warps + all);
  const int64_t groups = a.quantize.groups;
  const bool alone = a.quantize.candidate_count > 1 || groups >= all;
  for (int64_t row = Block(); row < a.rows; row += a.blocks) {
    Sync();  // the row before is done with
    for (int64_t i = warp; i < a.parts.parts; i += all) {
      RotatePart<kGelu>(a.parts, i, a.quantize.x + row * a.parts.k, rotated + i * a.parts.part);
    }
    Sync();
    for (int64_t g = alone ? warp : 0; g < groups; g += alone ? all : 1) {
      if (!alone) Sync();  // the group before is done with the warps' magnitudes
      QuantizeGroupAt<int8_t>(a.quantize, rotated, row, g, alone, warps);
    }
  }
}

}  // namespace

KERNEL(256) fp4dit_hadamard_quantize(HadamardQuantizeArguments a) { RotateAndQuantize<false>(a); }
KERNEL(256) fp4dit_gelu_hadamard_quantize(HadamardQuantizeArguments a) {
  RotateAndQuantize<true>(a);
}
