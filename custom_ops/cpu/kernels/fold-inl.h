// Sums of groups to sums of rows, and these to y: what the dots share. Included by files of kernels
// only; see linear_tile-inl.h on the anonymous namespace. `V` is as in broadcast_dot-inl.h.

#ifndef FP4DIT_CPU_KERNELS_FOLD_INL_H_
#define FP4DIT_CPU_KERNELS_FOLD_INL_H_

#include <cstddef>
#include <cstdint>

#include "cpu/kernels/linear_tile-inl.h"

namespace fp4dit {
namespace {

// sum = fma(group scale, a group's total, sum) at `at` of a few rows' sums, [row][panel].
template <typename V, typename Dot>
FP4DIT_ALWAYS_INLINE void FoldSum(const DotRows<Dot>& rows, size_t at, typename V::Float total) {
  const auto scale = V::LoadFloats(rows.group_scale + at % Dot::kPanel);
  V::StoreFloats(rows.sum + at, V::Fma(scale, total, V::LoadFloats(rows.sum + at)));
}

// FoldSum of the totals of R rows, which `Dot` has as `Totals`: TotalOf<R>(totals, row, v) is the
// v-th vector of a row's channels.
template <typename V, typename Dot, size_t R, typename Totals>
FP4DIT_ALWAYS_INLINE void FoldTotals(const DotRows<Dot>& rows, Totals& totals) {
  using Float = typename V::Float;
  Unroll<Dot::kPanel / V::kLanes>(
      [](size_t v, Totals& of_rows, const float* scale, float* sum) FP4DIT_INLINE_LAMBDA {
        const Float factor = V::LoadFloats(scale + v * V::kLanes);
        float* const first = sum + v * V::kLanes;
        Unroll<R>(
            [](size_t r, Totals& all, const Float& by, float* const& to, const size_t& at)
                FP4DIT_INLINE_LAMBDA {
                  float* const y = to + r * Dot::kPanel;
                  const Float total = Dot::template TotalOf<R>(all, r, at);
                  V::StoreFloats(y, V::Fma(by, total, V::LoadFloats(y)));
                },
            of_rows, factor, first, v);
      },
      totals, rows.group_scale, rows.sum);
}

// y = fma(scale, sum, y) of a panel, whose channels have scales, or one.
template <typename V, size_t kPanel>
void FoldVectors(const float* scale, const float* sum, float* y) {
  for (size_t n = 0; n < kPanel; n += V::kLanes) {
    const auto total = V::LoadFloats(y + n);
    V::StoreFloats(y + n, V::Fma(V::LoadFloats(scale + n), V::LoadFloats(sum + n), total));
  }
}

template <typename V, size_t kPanel>
void FoldVectors(float scale, const int32_t* sum, float* y) {
  const auto factor = V::Splat(scale);
  for (size_t n = 0; n < kPanel; n += V::kLanes) {
    const auto total = V::FromInts(V::Load(sum + n));
    V::StoreFloats(y + n, V::Fma(factor, total, V::LoadFloats(y + n)));
  }
}
template <typename V, size_t kPanel>
void FoldVectors(float scale, const float* sum, float* y) {
  const auto factor = V::Splat(scale);
  for (size_t n = 0; n < kPanel; n += V::kLanes) {
    V::StoreFloats(y + n, V::Fma(factor, V::LoadFloats(sum + n), V::LoadFloats(y + n)));
  }
}

// y of `count` rows from row `first` on, of their sums.
template <typename V, size_t kPanel>
void FinishRows(const LinearTile& tile, size_t first, size_t count, const float* sum) {
  for (size_t r = first; r < first + count; ++r, sum += kPanel) {
    const auto scale = V::Splat(tile.scale[r * tile.scale_stride]);
    float* const y = tile.y + r * tile.y_stride;
    for (size_t n = 0; n < tile.columns; n += V::kLanes) {
      const auto total = V::LoadFloats(sum + n);
      const auto bias = V::LoadFloats(tile.bias + n);
      auto found = tile.plain ? V::Add(V::Mul(scale, total), bias) : V::Fma(scale, total, bias);
      const size_t left = tile.columns - n;
      if (tile.keep != nullptr) {
        found = V::Add(V::Mul(V::LoadFirst(y + n, left), V::Splat(tile.keep[r])), found);
      }
      V::StoreFirst(y + n, found, left);
    }
  }
}

template <typename V, size_t kPanel>
void FinishRows(const LinearTile& tile, const float* sum) {
  FinishRows<V, kPanel>(tile, 0, tile.rows, sum);
}

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_FOLD_INL_H_
