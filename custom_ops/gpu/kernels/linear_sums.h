// What a warp of linear.cu sums, and how runs are folded into it: the order of numerics.linear.

#ifndef FP4DIT_GPU_KERNELS_LINEAR_SUMS_H_
#define FP4DIT_GPU_KERNELS_LINEAR_SUMS_H_

#include "gpu/arguments.h"
#include "gpu/device.h"
#include "gpu/kernels/floats.h"
#include "gpu/kernels/weight_scale.h"

namespace linear {

using fp4dit::gpu::kBytes;
using fp4dit::gpu::kCodes;
using fp4dit::gpu::kMultiplied;
using fp4dit::gpu::kStageSteps;
using fp4dit::gpu::kStep;
using fp4dit::gpu::kTileN;
using fp4dit::gpu::LinearArguments;
using fp4dit::gpu::Storage;

constexpr int kThreads = 256;
constexpr int kStages = 3;

template <typename Act_, Storage kStorage_, bool kSeveral_, int kRows_, bool kShared_ = false>
struct Config {
  using Act = Act_;
  static constexpr Storage kStorage = kStorage_;
  static constexpr bool kSeveral = kSeveral_;  // scales a row
  static constexpr int kRows = kRows_;         // of the block's tile
  static constexpr bool kShared = kShared_;    // blocks share inputs: only sums are made
  static constexpr int kPlanes = static_cast<int>(sizeof(Act));
  static constexpr int kWarpsM = kRows == 16 ? 1 : 2;
  static constexpr int kWarpsN = 8 / kWarpsM;
  static constexpr int kTilesM = kRows / kWarpsM / 16;  // of a warp
  static constexpr int kTilesN = kTileN / kWarpsN / 8;  // of a warp
  static constexpr int kRowBytes = kStageSteps * kStep * kPlanes;
  static constexpr int kRowPieces = kRowBytes / 16;
  static constexpr int kStageBytes = kRows * kRowBytes;
  static constexpr int kWords = kStorage == kBytes ? 2 : 1;  // Word4 of a lane, tile and stage
};

// What a warp sums: [planes] exact sums of a run, sums of a group of weights where a row has
// several scales, and y before the row's scale.
template <typename C>
struct Sums {
  int32_t run[C::kPlanes][C::kTilesM][C::kTilesN][4];
  float group[C::kSeveral ? C::kTilesM : 1][C::kTilesN][4];
  float y[C::kTilesM][C::kTilesN][4];
};

// Where a warp's sums are: element e of tile (i, j).
template <typename C>
struct Place {
  int64_t first_row, first_column;
  int lane;
  DEVICE int64_t Row(int i, int e) const { return first_row + i * 16 + e / 2 * 8 + lane / 4; }
  DEVICE int64_t Column(int j, int e) const { return first_column + j * 8 + lane % 4 * 2 + e % 2; }
};

// Counts runs, and the groups that they belong to.
struct Runs {
  int32_t step_left, scale_left, act_left;
  int32_t scale_group = 0, act_group = 0;

  DEVICE Runs(const LinearArguments& a, int)
      : step_left(a.run_steps), scale_left(a.scale_runs), act_left(a.act_runs) {}
  DEVICE void Next(const LinearArguments& a) {
    step_left = a.run_steps;
    if (--scale_left == 0) {
      scale_left = a.scale_runs;
      ++scale_group;
    }
    if (--act_left == 0) {
      act_left = a.act_runs;
      ++act_group;
    }
  }
};

// Counts the sums of a block that shares the inputs with others: parts of a run, or runs.
struct Slots {
  int32_t step_left, slot;

  DEVICE Slots(const LinearArguments& a, int first_stage)
      : step_left(a.slot_steps), slot(first_stage * kStageSteps / a.slot_steps) {}
  DEVICE void Next(const LinearArguments& a) {
    step_left = a.slot_steps;
    ++slot;
  }
};

template <bool kShared>
struct RunsOf {
  using Type = Runs;
};
template <>
struct RunsOf<true> {
  using Type = Slots;
};

// Whether sums start from the bits of a float.
template <typename C>
DEVICE bool AreFloats(const LinearArguments& a) {
  return C::kPlanes == 1 && !C::kShared && a.short_sums != 0;
}

template <typename C>
DEVICE void StartRun(const LinearArguments& a, Sums<C>& sums) {
  const int32_t start = AreFloats<C>(a) ? kMagicBits : 0;
  UNROLL for (int p = 0; p < C::kPlanes; ++p) {
    UNROLL for (int i = 0; i < C::kTilesM; ++i) {
      UNROLL for (int j = 0; j < C::kTilesN; ++j) {
        UNROLL for (int e = 0; e < 4; ++e) sums.run[p][i][j][e] = start;
      }
    }
  }
}

// The exact sum of a run.
template <typename C>
DEVICE uint32_t RunBits(const Sums<C>& sums, int i, int j, int e) {
  auto sum = static_cast<uint32_t>(sums.run[0][i][j][e]);
  if constexpr (C::kPlanes == 2) sum += static_cast<uint32_t>(sums.run[1][i][j][e]) << 8;
  return sum;
}

// Makes the exact sums of a run floats, which stay in sums.run[0].
template <bool kShort, typename C>
DEVICE void ConvertRun(Sums<C>& sums) {
  UNROLL for (int i = 0; i < C::kTilesM; ++i) {
    UNROLL for (int j = 0; j < C::kTilesN; ++j) {
      UNROLL for (int e = 0; e < 4; ++e) {
        const uint32_t sum = RunBits(sums, i, j, e);
        const float converted =
            kShort ? Sub(AsFloat(sum), kMagic) : ToFloat(static_cast<int32_t>(sum));
        sums.run[0][i][j][e] = static_cast<int32_t>(AsBits(converted));
      }
    }
  }
}

template <typename C>
DEVICE float RunSum(const Sums<C>& sums, int i, int j, int e) {
  return AsFloat(static_cast<uint32_t>(sums.run[0][i][j][e]));
}

// The last of the slot's steps is done: its sums go to memory.
template <typename C>
DEVICE void EndRun(const LinearArguments& a, const Slots& slots, bool, const Place<C>& place,
                   Sums<C>& sums) {
  uint32_t* const to = static_cast<uint32_t*>(a.scratch) + slots.slot * a.m * a.n_padded;
  UNROLL for (int i = 0; i < C::kTilesM; ++i) {
    UNROLL for (int j = 0; j < C::kTilesN; ++j) {
      UNROLL for (int e = 0; e < 4; ++e) {
        const int64_t row = place.Row(i, e);
        if (row < a.m) to[row * a.n_padded + place.Column(j, e)] = RunBits(sums, i, j, e);
      }
    }
  }
}

// The last of `runs` steps is done; `last` of all.
template <typename C>
DEVICE void EndRun(const LinearArguments& a, const Runs& runs, bool last, const Place<C>& place,
                   Sums<C>& sums) {
  if (AreFloats<C>(a)) {
    ConvertRun<true>(sums);
  } else {
    ConvertRun<false>(sums);
  }
  if constexpr (C::kSeveral) {
    UNROLL for (int i = 0; i < C::kTilesM; ++i) {
      UNROLL for (int half = 0; half < 2; ++half) {
        const int64_t row = place.Row(i, half * 2);
        const float scale = row < a.m ? a.scale[row * a.scale_stride + runs.act_group] : 0.0f;
        UNROLL for (int j = 0; j < C::kTilesN; ++j) {
          UNROLL for (int e = half * 2; e < half * 2 + 2; ++e) {
            float& group = sums.group[i][j][e];
            group = Fma(scale, RunSum(sums, i, j, e), group);
          }
        }
      }
    }
    if (runs.scale_left > 1 && !last) return;
  }
  UNROLL for (int j = 0; j < C::kTilesN; ++j) {
    const float scale[2] = {WeightScale(a, runs.scale_group, place.Column(j, 0)),
                            WeightScale(a, runs.scale_group, place.Column(j, 1))};
    UNROLL for (int i = 0; i < C::kTilesM; ++i) {
      UNROLL for (int e = 0; e < 4; ++e) {
        float part;
        if constexpr (C::kSeveral) {
          part = sums.group[i][j][e];
          sums.group[i][j][e] = 0.0f;
        } else {
          part = RunSum(sums, i, j, e);
        }
        sums.y[i][j][e] = Fma(scale[e % 2], part, sums.y[i][j][e]);
      }
    }
  }
}

template <typename C>
DEVICE void StartSums(const LinearArguments& a, const Place<C>& place, Sums<C>& sums) {
  UNROLL for (int i = 0; i < C::kTilesM; ++i) {
    UNROLL for (int j = 0; j < C::kTilesN; ++j) {
      UNROLL for (int e = 0; e < 4; ++e) {
        sums.y[i][j][e] = 0.0f;
        if constexpr (C::kSeveral) {
          const int64_t column = place.Column(j, e);
          sums.group[i][j][e] = 0.0f;
          sums.y[i][j][e] = column < a.n ? a.bias[column] : 0.0f;
        }
      }
    }
  }
}

template <typename C>
DEVICE void StoreSums(const LinearArguments& a, const Place<C>& place, const Sums<C>& sums) {
  UNROLL for (int i = 0; i < C::kTilesM; ++i) {
    UNROLL for (int half = 0; half < 2; ++half) {
      const int64_t row = place.Row(i, half * 2);
      if (row >= a.m) continue;
      const float scale = C::kSeveral ? 1.0f : a.scale[row * a.scale_stride];
      UNROLL for (int j = 0; j < C::kTilesN; ++j) {
        UNROLL for (int e = 0; e < 2; ++e) {
          const int64_t column = place.Column(j, e);
          if (column >= a.n) continue;
          float y = sums.y[i][j][half * 2 + e];
          if constexpr (!C::kSeveral) {
            const float bias = a.bias[column];
            y = a.plain != 0 ? Add(Mul(scale, y), bias) : Fma(scale, y, bias);
          }
          a.y[row * a.n + column] = y;
        }
      }
    }
  }
}

}  // namespace linear

#endif  // FP4DIT_GPU_KERNELS_LINEAR_SUMS_H_
