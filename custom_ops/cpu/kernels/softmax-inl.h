// Softmax of rows of scores, and its integers, in vector registers, see broadcast_dot-inl.h;
// included by files of kernels only. See linear_tile-inl.h on the anonymous namespace,
// attention.exp and attention.attention on the definition.

#ifndef FP4DIT_CPU_KERNELS_SOFTMAX_INL_H_
#define FP4DIT_CPU_KERNELS_SOFTMAX_INL_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/quantize_row-inl.h"
#include "cpu/kernels/stage_rows-inl.h"

namespace fp4dit {
namespace {

// x becomes exp(x) of x <= 0, or NaN: 2^n * exp(r) with n the nearest integer of x / ln 2. Each
// step is done for all vectors before the next, which would wait for it.
template <typename V, size_t N>
FP4DIT_ALWAYS_INLINE void Exp(typename V::Float (&x)[N]) {
  const auto rounder = V::Splat(kExpRounder);
  typename V::Float z[N], n[N], r[N], p[N];
  for (size_t v = 0; v < N; ++v) z[v] = V::Fma(x[v], V::Splat(kExpLog2E), rounder);
  for (size_t v = 0; v < N; ++v) n[v] = V::Sub(z[v], rounder);  // which z has in its lowest bits
  for (size_t v = 0; v < N; ++v) r[v] = V::Fma(n[v], V::Splat(-kExpLn2High), x[v]);
  for (size_t v = 0; v < N; ++v) r[v] = V::Fma(n[v], V::Splat(-kExpLn2Low), r[v]);
  for (size_t v = 0; v < N; ++v) p[v] = V::Splat(kExpTerms[0]);
  for (size_t i = 1; i < kExpTermCount; ++i) {
    for (size_t v = 0; v < N; ++v) p[v] = V::Fma(p[v], r[v], V::Splat(kExpTerms[i]));
  }
  for (size_t v = 0; v < N; ++v) {
    x[v] = V::ScaleUnlessBelow(p[v], z[v], n[v], x[v], V::Splat(kExpLeast));
  }
}

// Every lane becomes `combine` of all lanes, folded in halves.
template <typename V, size_t kHalf = V::kLanes / 2, typename Combine>
typename V::Float FoldLanes(typename V::Float v, const Combine& combine) {
  if constexpr (kHalf == 0) {
    return v;
  } else {
    return FoldLanes<V, kHalf / 2>(combine(v, V::template Swapped<kHalf>(v)), combine);
  }
}

template <typename V>
float FirstLane(typename V::Float v) {
  alignas(64) float lanes[V::kLanes];
  V::StoreFloats(lanes, v);
  return lanes[0];
}

template <typename V>
float LargestOf(const float* x, size_t count) {
  constexpr size_t kVectors = kSoftmaxLanes / V::kLanes;
  typename V::Float most[kVectors];
  for (size_t v = 0; v < kVectors; ++v) most[v] = V::LoadFloats(x + v * V::kLanes);
  for (size_t i = kSoftmaxLanes; i < count; i += kSoftmaxLanes) {
    for (size_t v = 0; v < kVectors; ++v) {
      most[v] = V::Max(V::LoadFloats(x + i + v * V::kLanes), most[v]);
    }
  }
  for (size_t v = 1; v < kVectors; ++v) most[0] = V::Max(most[0], most[v]);
  return FirstLane<V>(FoldLanes<V>(most[0], [](auto a, auto b) { return V::Max(a, b); }));
}

// The sixteen partial sums, folded in halves.
template <typename V>
float FoldSums(typename V::Float (&part)[kSoftmaxLanes / V::kLanes]) {
  for (size_t half = kSoftmaxLanes / V::kLanes / 2; half > 0; half /= 2) {
    for (size_t v = 0; v < half; ++v) part[v] = V::Add(part[v], part[v + half]);
  }
  return FirstLane<V>(FoldLanes<V>(part[0], [](auto a, auto b) { return V::Add(a, b); }));
}

// What a pass over a row leaves to the next.
struct SoftmaxState {
  float base;
  uint32_t largest;  // bits of the weights' largest magnitude
};

// max and shrink of row `r`.
template <typename V>
void StartSoftmax(const SoftmaxTile& tile, size_t r, SoftmaxState* state) {
  const float largest = LargestOf<V>(tile.scores + r * tile.stride, tile.count);
  const float before = tile.max[r];
  const float max = largest > before ? largest : before;
  state->base = max == -INFINITY ? 0.0f : max;
  tile.max[r] = max;
  tile.shrink[r] = before - state->base;
}

// Sums of a row, and its weights' largest magnitude, as a pass goes.
template <typename V>
struct RowSums {
  static constexpr size_t kVectors = kSoftmaxLanes / V::kLanes;
  typename V::Float sum[kVectors];
  typename V::Int most;
};

// N vectors of a row become weights.
template <typename V, size_t N>
FP4DIT_ALWAYS_INLINE void Exponentiate(float* row, const float* value_scale, float base,
                                       RowSums<V>* sums) {
  typename V::Float e[N];
  for (size_t v = 0; v < N; ++v) e[v] = V::Sub(V::LoadFloats(row + v * V::kLanes), V::Splat(base));
  Exp<V, N>(e);
  for (size_t v = 0; v < N; ++v) {
    auto& sum = sums->sum[v % RowSums<V>::kVectors];
    sum = V::Add(sum, e[v]);
    const auto weight = V::Mul(e[v], V::LoadFloats(value_scale + v * V::kLanes));
    const auto magnitude = V::And(V::AsInts(weight), V::SplatInt(0x7fffffff));
    sums->most = V::MaxInts(sums->most, magnitude);
    V::StoreFloats(row + v * V::kLanes, weight);
  }
}

template <typename V>
void Exponentiate(const SoftmaxTile& tile, size_t r, SoftmaxState* state) {
  constexpr size_t kVectors = RowSums<V>::kVectors;
  constexpr size_t kAtOnce = kVectors < 4 ? 4 : kVectors;
  RowSums<V> sums;
  for (auto& s : sums.sum) s = V::Splat(0.0f);
  sums.most = V::SplatInt(0);
  float* const row = tile.scores + r * tile.stride;
  size_t i = 0;
  for (; i + kAtOnce * V::kLanes <= tile.count; i += kAtOnce * V::kLanes) {
    Exponentiate<V, kAtOnce>(row + i, tile.value_scale + i, state->base, &sums);
  }
  for (; i < tile.count; i += kSoftmaxLanes) {
    Exponentiate<V, kVectors>(row + i, tile.value_scale + i, state->base, &sums);
  }
  tile.sum[r] = tile.sum[r] * tile.shrink[r] + FoldSums<V>(sums.sum);
  const auto larger = [](auto a, auto b) {
    return V::AsFloats(V::MaxInts(V::AsInts(a), V::AsInts(b)));
  };
  const float largest = FirstLane<V>(FoldLanes<V>(V::AsFloats(sums.most), larger));
  std::memcpy(&state->largest, &largest, sizeof(largest));
}

// The integers of the weights, see Quantize. So many bits need no grid: what is nearest is the
// nearest integer.
template <typename V>
void QuantizeWeights(const SoftmaxTile& tile, size_t r, const SoftmaxState& state) {
  const float* const weights = tile.scores + r * tile.stride;
  int16_t* const q = tile.q + r * tile.q_stride;
  const float amax = BitsAsFloat(state.largest);
  const bool finite = state.largest < 0x7f800000u;
  if (!finite || amax < kSmallestAmax) {
    std::memset(q, 0, tile.count * sizeof(*q));
    tile.scale[r] = finite ? 0.0f : BitsAsFloat(0x7fc00000u);
    return;
  }
  const auto factor = V::Splat(kProbabilities.max_integer / amax);
  for (size_t i = 0; i < tile.count; i += V::kLanes) {
    V::StoreRounded(V::Mul(V::LoadFloats(weights + i), factor), q + i);
  }
  tile.scale[r] = amax / kProbabilities.max_integer;
}

// A few rows at a time, step by step: no step of a row waits for the one before.
template <typename V>
void Softmax(const SoftmaxTile& tile) {
  constexpr size_t kRows = 8;
  SoftmaxState states[kRows];
  for (size_t first = 0; first < tile.rows; first += kRows) {
    const size_t count = tile.rows - first < kRows ? tile.rows - first : kRows;
    for (size_t i = 0; i < count; ++i) StartSoftmax<V>(tile, first + i, &states[i]);
    for (size_t i = 0; i < count; i += V::kLanes) {
      float* const shrink = tile.shrink + first + i;
      typename V::Float e[] = {V::LoadFirst(shrink, count - i)};
      Exp<V>(e);
      V::StoreFirst(shrink, e[0], count - i);
    }
    for (size_t i = 0; i < count; ++i) Exponentiate<V>(tile, first + i, &states[i]);
    for (size_t i = 0; i < count; ++i) QuantizeWeights<V>(tile, first + i, states[i]);
  }
}

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_SOFTMAX_INL_H_
