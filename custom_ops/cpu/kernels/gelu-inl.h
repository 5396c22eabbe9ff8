// GELU of a row in vector registers, see activations.gelu and broadcast_dot-inl.h; included by files
// of kernels only. See linear_tile-inl.h on the anonymous namespace.

#ifndef FP4DIT_CPU_KERNELS_GELU_INL_H_
#define FP4DIT_CPU_KERNELS_GELU_INL_H_

#include <cstddef>
#include <cstring>

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/softmax-inl.h"

namespace fp4dit {
namespace {

template <typename V>
typename V::Float GeluOf(typename V::Float x) {
  const auto slope = V::Fma(V::Mul(x, x), V::Splat(-kGeluCubic), V::Splat(-kGeluLinear));
  const auto magnitude = V::AsFloats(V::And(V::AsInts(x), V::SplatInt(0x7fffffff)));
  const auto e = Exp<V>(V::Mul(magnitude, slope));
  const auto above = V::Max(V::Splat(0.0f), x);
  const auto part = V::Fma(V::Sub(x, above), e, above);
  return V::Div(part, V::Add(V::Splat(1.0f), e));
}

template <typename V>
void Gelu(const float* x, size_t count, float* y) {
  size_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    V::StoreFloats(y + i, GeluOf<V>(V::LoadFloats(x + i)));
  }
  if (i == count) return;
  alignas(64) float rest[V::kLanes];
  V::StoreFloats(rest, GeluOf<V>(V::LoadFirst(x + i, count - i)));
  std::memcpy(y + i, rest, (count - i) * sizeof(float));
}

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_GELU_INL_H_
