// Quantizing a row in vector registers, see broadcast_dot-inl.h; included by files of kernels only.
// See linear_tile-inl.h on the anonymous namespace.

#ifndef FP4DIT_CPU_KERNELS_QUANTIZE_ROW_INL_H_
#define FP4DIT_CPU_KERNELS_QUANTIZE_ROW_INL_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/kernels.h"

namespace fp4dit {
namespace {

// Adding 1.5 * 2^(23 + s) to t and subtracting it again rounds t to a multiple of 2^s, ties to even
// multiples, if |t| < 2^(22 + s). In the binade [2^b, 2^(b+1)) the grid is a multiple of
// 2^max(0, b - mantissa_bits), so the exponent of t itself says which number to add. A row's t is
// the format's largest integer at most, up to one rounding, and needs no clipping.
template <typename V>
struct GridRounding {
  typename V::Int exponent_mask, smallest, adder;

  explicit GridRounding(const QuantizeGrid& grid)
      : exponent_mask(V::SplatInt(0x7f800000)),
        smallest(V::SplatInt((127 + grid.mantissa_bits) << 23)),
        adder(V::SplatInt(((23 - grid.mantissa_bits) << 23) + (1 << 22))) {}

  typename V::Float operator()(typename V::Float t) const {
    const auto exponent = V::And(V::AsInts(t), exponent_mask);
    const auto big = V::AsFloats(V::AddInts(V::MaxInts(exponent, smallest), adder));
    return V::Sub(V::Add(t, big), big);
  }
};

// Bits of the largest magnitude. They are ordered as magnitudes are, with NaN above all.
template <typename V>
uint32_t LargestMagnitude(const float* x, size_t k) {
  const auto mask = V::SplatInt(0x7fffffff);
  auto largest = V::SplatInt(0);
  auto other = largest;  // two chains, as the maximum of one takes longer than a load
  size_t i = 0;
  for (; i + 2 * V::kLanes <= k; i += 2 * V::kLanes) {
    largest = V::MaxInts(largest, V::And(V::Load(x + i), mask));
    other = V::MaxInts(other, V::And(V::Load(x + i + V::kLanes), mask));
  }
  largest = V::MaxInts(largest, other);
  for (; i < k; i += V::kLanes) {
    const auto part = V::AsInts(V::LoadFirst(x + i, k - i));
    largest = V::MaxInts(largest, V::And(part, mask));
  }
  alignas(64) uint32_t lanes[V::kLanes];
  V::Store(lanes, largest);
  uint32_t result = 0;
  for (uint32_t bits : lanes) result = bits > result ? bits : result;
  return result;
}

inline float BitsAsFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <typename V, typename Integer>
void Quantize(const float* x, size_t k, const QuantizeGrid& grid, void* result, float* scale) {
  Integer* q = static_cast<Integer*>(result);
  const uint32_t largest = LargestMagnitude<V>(x, k);
  const float amax = grid.largest > 0.0f ? grid.largest : BitsAsFloat(largest);
  const bool finite = largest < 0x7f800000u;
  if (!finite || amax < kSmallestAmax) {
    for (size_t i = 0; i < k; ++i) q[i] = 0;
    *scale = finite ? 0.0f : BitsAsFloat(0x7fc00000u);
    return;
  }
  const auto factor = V::Splat(grid.max_integer / amax);
  const GridRounding<V> round(grid);
  size_t i = 0;
  for (; i + V::kLanes <= k; i += V::kLanes) {
    const auto t = V::Mul(V::LoadFloats(x + i), factor);
    V::StoreIntegers(round(t), t, q + i);
  }
  if (i < k) {
    Integer rest[V::kLanes];
    const auto t = V::Mul(V::LoadFirst(x + i, k - i), factor);
    V::StoreIntegers(round(t), t, rest);
    std::memcpy(q + i, rest, (k - i) * sizeof(Integer));
  }
  *scale = amax / grid.max_integer;
}

// See QuantizeError.
template <typename V>
int32_t RoundingError(const float* x, size_t k, const QuantizeGrid& grid) {
  const uint32_t largest = LargestMagnitude<V>(x, k);
  const float amax = BitsAsFloat(largest);
  if (largest >= 0x7f800000u || amax < kSmallestAmax) return 0;
  const auto factor = V::Splat(grid.max_integer / amax);
  const auto parts = V::Splat(64.0f);
  const GridRounding<V> round(grid);
  auto total = V::SplatInt(0);
  for (size_t i = 0; i < k; i += V::kLanes) {
    const auto t = V::Mul(V::LoadFirst(x + i, k - i), factor);
    const auto error = V::Rounded(V::Mul(V::Sub(t, round(t)), parts));
    total = V::AddInts(total, V::MulInts(error, error));
  }
  alignas(64) int32_t lanes[V::kLanes];
  V::Store(lanes, total);
  int32_t sum = 0;
  for (const int32_t lane : lanes) sum += lane;
  return sum;
}

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_QUANTIZE_ROW_INL_H_
