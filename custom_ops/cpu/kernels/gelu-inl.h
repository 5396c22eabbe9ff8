// GELU of a row in vector registers, see activations.gelu and broadcast_dot-inl.h; included by
// files of kernels only. See linear_tile-inl.h on the anonymous namespace.

#ifndef FP4DIT_CPU_KERNELS_GELU_INL_H_
#define FP4DIT_CPU_KERNELS_GELU_INL_H_

#include <cstddef>

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/softmax-inl.h"

namespace fp4dit {
namespace {

// x becomes its GELU.
template <typename V, size_t N>
FP4DIT_ALWAYS_INLINE void GeluOf(typename V::Float (&x)[N]) {
  typename V::Float e[N];
  for (size_t v = 0; v < N; ++v) {
    const auto slope = V::Fma(V::Mul(x[v], x[v]), V::Splat(-kGeluCubic), V::Splat(-kGeluLinear));
    e[v] = V::Mul(V::AsFloats(V::And(V::AsInts(x[v]), V::SplatInt(0x7fffffff))), slope);
  }
  Exp<V>(e);
  for (size_t v = 0; v < N; ++v) {
    const auto above = V::Max(V::Splat(0.0f), x[v]);
    const auto part = V::Fma(V::Sub(x[v], above), e[v], above);
    x[v] = V::Div(part, V::Add(V::Splat(1.0f), e[v]));
  }
}

template <typename V>
void Gelu(const float* x, size_t count, float* y) {
  constexpr size_t kVectors = V::kLanes == 16 ? 4 : 2;  // as many as registers hold
  size_t i = 0;
  for (; i + kVectors * V::kLanes <= count; i += kVectors * V::kLanes) {
    typename V::Float all[kVectors];
    for (size_t v = 0; v < kVectors; ++v) all[v] = V::LoadFloats(x + i + v * V::kLanes);
    GeluOf<V>(all);
    for (size_t v = 0; v < kVectors; ++v) V::StoreFloats(y + i + v * V::kLanes, all[v]);
  }
  for (; i < count; i += V::kLanes) {
    typename V::Float one[] = {V::LoadFirst(x + i, count - i)};
    GeluOf<V>(one);
    V::StoreFirst(y + i, one[0], count - i);
  }
}

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_GELU_INL_H_
