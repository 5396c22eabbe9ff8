// Normalizing a row in vector registers, see norms.layer_norm and broadcast_dot-inl.h; included by
// files of kernels only. See linear_tile-inl.h on the anonymous namespace.

#ifndef FP4DIT_CPU_KERNELS_NORM_INL_H_
#define FP4DIT_CPU_KERNELS_NORM_INL_H_

#include <cmath>
#include <cstddef>

#include "cpu/kernels/kernels.h"

namespace fp4dit {
namespace {

// Partial sums of a row, folded in halves. `term` adds the lanes from i on, `count` of them, to a
// sum.
template <typename V, typename Term>
float SumOfRow(size_t k, const Term& term) {
  constexpr size_t kVectors = kNormLanes / V::kLanes;
  typename V::Float sum[kVectors];
  for (auto& s : sum) s = V::Splat(0.0f);
  size_t i = 0;
  for (; i + kNormLanes <= k; i += kNormLanes) {
    for (size_t v = 0; v < kVectors; ++v) sum[v] = term(i + v * V::kLanes, V::kLanes, sum[v]);
  }
  for (size_t v = 0; i < k; ++v, i += V::kLanes) sum[v] = term(i, k - i, sum[v]);
  float lanes[kNormLanes];
  for (size_t v = 0; v < kVectors; ++v) V::StoreFloats(lanes + v * V::kLanes, sum[v]);
  for (size_t half = kNormLanes / 2; half > 0; half /= 2) {
    for (size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

template <typename V>
float Center(const float* x, size_t k, float epsilon, float* y) {
  using Float = typename V::Float;
  const auto add = [x](size_t i, size_t count, Float sum) {
    return V::Add(sum, V::LoadFirst(x + i, count));
  };
  const auto size = static_cast<float>(k);
  const auto mean = V::Splat(SumOfRow<V>(k, add) / size);
  const auto square = [x, y, mean](size_t i, size_t count, Float sum) {
    V::StoreFirst(y + i, V::Sub(V::LoadFirst(x + i, count), mean), count);
    const auto off = V::LoadFirst(y + i, count);  // what is beyond the row is zero
    return V::Fma(off, off, sum);
  };
  return 1.0f / std::sqrt(SumOfRow<V>(k, square) / size + epsilon);
}

template <typename V>
void Modulate(const float* x, float factor, const float* gain, const float* shift, size_t count,
              float* y) {
  const auto by = V::Splat(factor);
  for (size_t i = 0; i < count; i += V::kLanes) {
    const size_t left = count - i;
    const auto unit = V::Mul(V::LoadFirst(x + i, left), by);
    const auto moved = V::Fma(unit, V::LoadFirst(gain + i, left), V::LoadFirst(shift + i, left));
    V::StoreFirst(y + i, moved, left);
  }
}

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_NORM_INL_H_
