// Rotating a row in vector registers, see numerics.hadamard and broadcast_dot-inl.h, or without
// them; included by files of kernels only. See linear_tile-inl.h on the anonymous namespace.
//
// Sums and differences are of elements a power of two apart, ascending: first of lanes of a
// register, then of registers, then of memory.

#ifndef FP4DIT_CPU_KERNELS_HADAMARD_INL_H_
#define FP4DIT_CPU_KERNELS_HADAMARD_INL_H_

#include <cstddef>
#include <cstdint>

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/linear_tile-inl.h"

namespace fp4dit {
namespace {

// For distances 1, 2, 4 and 8: minus one for the lanes that become differences.
alignas(64) constexpr float kLaneSigns[4][16] = {
    {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},
    {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},
    {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},
    {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1}};

constexpr size_t Exponent(size_t power) { return power <= 1 ? 0 : 1 + Exponent(power / 2); }

// Lanes less than `size` apart, from kDistance on. The product with one or minus one is exact, so
// fma is the sum or difference.
template <typename V, size_t kDistance = 1>
FP4DIT_ALWAYS_INLINE typename V::Float SumLanes(typename V::Float v, size_t size) {
  if constexpr (kDistance < V::kLanes) {
    if (kDistance >= size) return v;
    const auto signs = V::LoadFloats(kLaneSigns[Exponent(kDistance)]);
    return SumLanes<V, 2 * kDistance>(V::Fma(v, signs, V::template Swapped<kDistance>(v)), size);
  } else {
    return v;
  }
}

template <typename V, size_t kCount, size_t kDistance = 1>
FP4DIT_ALWAYS_INLINE void SumRegisters(typename V::Float (&v)[kCount]) {
  if constexpr (kDistance < kCount) {
    Unroll<kCount / 2>(
        [](size_t i, typename V::Float(&all)[kCount]) {
          const size_t at = i / kDistance * 2 * kDistance + i % kDistance;
          const auto first = all[at];
          const auto second = all[at + kDistance];
          all[at] = V::Add(first, second);
          all[at + kDistance] = V::Sub(first, second);
        },
        v);
    SumRegisters<V, kCount, 2 * kDistance>(v);
  }
}

// kCount registers, times `factor`.
template <typename V, size_t kCount>
FP4DIT_ALWAYS_INLINE void RotateRegisters(const float* x, typename V::Float factor, float* y) {
  typename V::Float v[kCount];
  Unroll<kCount>(
      [](size_t i, typename V::Float(&all)[kCount], const float* from) {
        all[i] = SumLanes<V>(V::LoadFloats(from + i * V::kLanes), V::kLanes);
      },
      v, x);
  SumRegisters<V>(v);
  Unroll<kCount>(
      [](size_t i, typename V::Float(&all)[kCount], float* to, const typename V::Float& by) {
        V::StoreFloats(to + i * V::kLanes, V::Mul(all[i], by));
      },
      v, y, factor);
}

// Runs of `size` elements each that are of kCount registers, or more: then kCount is the most.
template <typename V, size_t kCount>
void RotateRuns(const float* x, size_t count, size_t size, float* y) {
  constexpr size_t kPart = kCount * V::kLanes;
  const auto factor = V::Splat(kHadamardFactors[Exponent(size)]);
  const auto first = size == kPart ? factor : V::Splat(1.0f);
  for (size_t i = 0; i < count * size; i += kPart) RotateRegisters<V, kCount>(x + i, first, y + i);
  for (size_t distance = kPart; distance < size; distance *= 2) {
    const auto by = 2 * distance == size ? factor : first;
    for (float* left = y; left < y + count * size; left += 2 * distance) {
      for (size_t i = 0; i < distance; i += V::kLanes) {
        const auto a = V::LoadFloats(left + i);
        const auto b = V::LoadFloats(left + distance + i);
        V::StoreFloats(left + i, V::Mul(V::Add(a, b), by));
        V::StoreFloats(left + distance + i, V::Mul(V::Sub(a, b), by));
      }
    }
  }
}

// The first elements of runs that are shorter than a register: as many as whole registers hold.
template <typename V>
size_t RotateShortRuns(const float* x, size_t k, size_t size, float* y) {
  const auto factor = V::Splat(kHadamardFactors[Exponent(size)]);
  size_t i = 0;
  for (; i + V::kLanes <= k; i += V::kLanes) {
    V::StoreFloats(y + i, V::Mul(SumLanes<V>(V::LoadFloats(x + i), size), factor));
  }
  return i;
}

// One run, without registers.
inline void RotatePlainly(const float* x, size_t size, float* y) {
  for (size_t i = 0; i < size; ++i) y[i] = x[i];
  for (size_t distance = 1; distance < size; distance *= 2) {
    for (size_t i = 0; i < size; ++i) {
      if ((i & distance) != 0) continue;
      const float a = y[i];
      const float b = y[i + distance];
      y[i] = a + b;
      y[i + distance] = a - b;
    }
  }
  for (size_t i = 0; i < size; ++i) y[i] *= kHadamardFactors[Exponent(size)];
}

template <typename V>
void Hadamard(const float* x, size_t k, size_t block, float* y) {
  for (size_t size = block; k > 0; size /= 2) {
    size_t done = k / size * size;
    if (size >= 8 * V::kLanes) {
      RotateRuns<V, 8>(x, k / size, size, y);
    } else if (size == 4 * V::kLanes) {
      RotateRuns<V, 4>(x, k / size, size, y);
    } else if (size == 2 * V::kLanes) {
      RotateRuns<V, 2>(x, k / size, size, y);
    } else if (size == V::kLanes) {
      RotateRuns<V, 1>(x, k / size, size, y);
    } else {
      const size_t whole = RotateShortRuns<V>(x, done, size, y);
      for (size_t i = whole; i < done; i += size) RotatePlainly(x + i, size, y + i);
    }
    x += done;
    y += done;
    k -= done;
  }
}

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_HADAMARD_INL_H_
