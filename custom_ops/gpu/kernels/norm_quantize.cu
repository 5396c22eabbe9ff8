// FpNormQuantize and its like: a row's norm, rotated or not, then FpQuantize, a row a block.
// norms.layer_norm is the definition.

#include "gpu/kernels/quantize_group.h"
#include "gpu/kernels/rotate.h"

namespace {

using fp4dit::gpu::BroadcastRows;
using fp4dit::gpu::kNormLanes;
using fp4dit::gpu::NormQuantizeArguments;

DEVICE const float* RowOf(const BroadcastRows& rows, int64_t row, int64_t k) {
  return rows.data + row / rows.inner % rows.outer * k;
}

// The sum of what the first threads have, one a lane, folded in halves.
DEVICE float SumOfLanes(float own, float* lanes) {
  const int thread = Thread();
  Sync();  // all have read the sum before
  if (thread < kNormLanes) lanes[thread] = own;
  Sync();
  for (int half = kNormLanes / 2; half > 0; half /= 2) {
    if (thread < half) lanes[thread] = Add(lanes[thread], lanes[thread + half]);
    Sync();
  }
  return lanes[0];
}

// The norm of x to y, scaled and shifted.
DEVICE void Normalize(const NormQuantizeArguments& a, int64_t row, float* lanes, float* y) {
  const int64_t k = a.rows.parts.k;
  const float* const x = a.rows.quantize.x + row * k;
  const float* const gain = RowOf(a.gain, row, k);
  const float* const shift = RowOf(a.shift, row, k);
  const float size = ToFloat(static_cast<int32_t>(k));
  const int64_t first = Thread() < kNormLanes ? Thread() : k;
  float sum = 0.0f;
  for (int64_t i = first; i < k; i += kNormLanes) sum = Add(sum, x[i]);
  const float mean = Div(SumOfLanes(sum, lanes), size);
  float squares = 0.0f;
  for (int64_t i = first; i < k; i += kNormLanes) {
    const float off = Sub(x[i], mean);
    squares = Fma(off, off, squares);
  }
  const float variance = Div(SumOfLanes(squares, lanes), size);
  const float factor = Div(1.0f, Sqrt(Add(variance, a.epsilon)));
  for (int64_t i = Thread(); i < k; i += Threads()) {
    y[i] = Fma(Mul(Sub(x[i], mean), factor), gain[i], shift[i]);
  }
}

template <typename Integer>
DEVICE void NormAndQuantize(const NormQuantizeArguments& a) {
  const int warp = Thread() / 32;
  const int all = Threads() / 32;
  auto* const warps = reinterpret_cast<uint32_t*>(Shared());
  auto* const lanes = reinterpret_cast<float*>(warps + all);
  float* const made =
      a.rows.scratch != nullptr ? a.rows.scratch + Block() * a.rows.parts.k : lanes + kNormLanes;
  const int64_t groups = a.rows.quantize.groups;
  const bool alone = a.rows.quantize.candidate_count > 1 || groups >= all;
  for (int64_t row = Block(); row < a.rows.rows; row += a.rows.blocks) {
    Sync();  // the row before is done with
    Normalize(a, row, lanes, made);
    Sync();
    if (a.rows.parts.part > 0) {  // in its place
      for (int64_t i = warp; i < a.rows.parts.parts; i += all) {
        RotatePart(a.rows.parts, i, made, made + i * a.rows.parts.part);
      }
      Sync();
    }
    for (int64_t g = alone ? warp : 0; g < groups; g += alone ? all : 1) {
      if (!alone) Sync();  // the group before is done with the warps' magnitudes
      QuantizeGroupAt<Integer>(a.rows.quantize, made, row, g, alone, warps);
    }
  }
}

}  // namespace

KERNEL(256) fp4dit_norm_quantize_int8(NormQuantizeArguments a) { NormAndQuantize<int8_t>(a); }
KERNEL(256) fp4dit_norm_quantize_int16(NormQuantizeArguments a) { NormAndQuantize<int16_t>(a); }
