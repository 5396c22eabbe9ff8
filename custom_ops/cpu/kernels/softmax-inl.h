// Softmax of a row of scores in vector registers, see broadcast_dot-inl.h; included by files of
// kernels only. See linear_tile-inl.h on the anonymous namespace, attention.exp and
// attention.attention on the definition.

#ifndef FP4DIT_CPU_KERNELS_SOFTMAX_INL_H_
#define FP4DIT_CPU_KERNELS_SOFTMAX_INL_H_

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "cpu/kernels/kernels.h"

namespace fp4dit {
namespace {

// exp(x) of x <= 0, or NaN: 2^n * exp(r) with n the nearest integer of x / ln 2.
template <typename V>
typename V::Float Exp(typename V::Float x) {
  const auto rounder = V::Splat(kExpRounder);
  const auto z = V::Fma(x, V::Splat(kExpLog2E), rounder);  // n in the lowest bits
  const auto n = V::Sub(z, rounder);
  const auto high = V::Fma(n, V::Splat(-kExpLn2High), x);
  const auto r = V::Fma(n, V::Splat(-kExpLn2Low), high);
  auto p = V::Splat(kExpTerms[0]);
  for (size_t i = 1; i < kExpTermCount; ++i) p = V::Fma(p, r, V::Splat(kExpTerms[i]));
  const auto power = V::AddInts(V::ShiftLeft23(V::AsInts(z)), V::SplatInt(127 << 23));
  return V::ZeroIfBelow(V::Mul(p, V::AsFloats(power)), x, V::Splat(kExpLeast));
}

template <typename V>
float LargestOf(const float* x, size_t count) {
  auto most = V::LoadFloats(x);
  for (size_t i = V::kLanes; i < count; i += V::kLanes) most = V::Max(V::LoadFloats(x + i), most);
  alignas(64) float lanes[V::kLanes];
  V::StoreFloats(lanes, most);
  float result = lanes[0];
  for (float v : lanes) result = v > result ? v : result;
  return result;
}

// Sixteen partial sums, folded in halves.
template <typename V>
float FoldLanes(const typename V::Float (&part)[kSoftmaxLanes / V::kLanes]) {
  float lanes[kSoftmaxLanes];
  for (size_t v = 0; v < kSoftmaxLanes / V::kLanes; ++v) {
    V::StoreFloats(lanes + v * V::kLanes, part[v]);
  }
  for (size_t half = kSoftmaxLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

template <typename V>
void Softmax(SoftmaxRow* row) {
  constexpr size_t kVectors = kSoftmaxLanes / V::kLanes;
  const float largest = LargestOf<V>(row->scores, row->count);
  const float max = largest > row->max ? largest : row->max;
  const float base = max == -INFINITY ? 0.0f : max;
  const auto bases = V::Splat(base);
  typename V::Float sum[kVectors];
  for (auto& s : sum) s = V::Splat(0.0f);
  for (size_t i = 0; i < row->count; i += kSoftmaxLanes) {
    for (size_t v = 0; v < kVectors; ++v) {
      float* const at = row->scores + i + v * V::kLanes;
      const auto e = Exp<V>(V::Sub(V::LoadFloats(at), bases));
      sum[v] = V::Add(sum[v], e);
      V::StoreFloats(at, V::Mul(e, V::LoadFloats(row->value_scale + i + v * V::kLanes)));
    }
  }
  alignas(64) float shrink[V::kLanes];
  V::StoreFloats(shrink, Exp<V>(V::Splat(row->max - base)));
  row->shrink = shrink[0];
  row->sum = FoldLanes<V>(sum);
  row->max = max;
}

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_SOFTMAX_INL_H_
