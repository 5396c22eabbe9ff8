// FpLinear and its like of whatever types, without tensor cores: float activations, whose products
// are a chain of fma in the order of inputs, and weights that are int16 or float. A block makes 64
// x 64 of y, a thread 4 x 4. numerics.linear and linear_integer are the definitions.

#include "gpu/arguments.h"
#include "gpu/device.h"
#include "gpu/kernels/fold.h"

namespace linear_plain {

using fp4dit::gpu::LinearArguments;
using linear::Fold;
using linear::WeightScale;

constexpr int kTile = 64;
constexpr int kThreads = 256;
constexpr int kChunk = 32;  // inputs staged at a time
constexpr int kStride = kTile + 4;

// Of integers sums are exact modulo 2^32.
DEVICE uint32_t MultiplyAdd(int32_t a, int32_t b, uint32_t c) {
  return static_cast<uint32_t>(a) * static_cast<uint32_t>(b) + c;
}
DEVICE float MultiplyAdd(float a, float b, float c) { return Fma(a, b, c); }
DEVICE float SumAsFloat(uint32_t sum) { return ToFloat(static_cast<int32_t>(sum)); }
DEVICE float SumAsFloat(float sum) { return sum; }

template <typename Act>
struct Types {
  using Operand = int32_t;
  using Sum = uint32_t;
};
template <>
struct Types<float> {
  using Operand = float;
  using Sum = float;
};

// Grid integer of channel n, input k, times its multiplier.
DEVICE float WeightAt(const LinearArguments& a, int64_t n, int k) {
  const uint8_t* const row = a.codes + n * a.row_bytes;
  int code;
  if (k >= a.wide) {
    const int bit = k - a.wide;
    code = (row[a.wide / 2 + bit / 8] >> (bit % 8) & 1) != 0 ? a.minus_one : 1;
  } else if (a.code_bits == 4) {
    code = row[k / 2] >> (k % 2 * 4) & 15;
  } else {
    code = row[k];
  }
  const float grid = a.grid[code];
  if (a.multipliers == nullptr) return grid;
  const int group = k / a.multiplier_group;
  const int byte = a.multipliers[n * a.multiplier_bytes + group / 2];
  return Mul(grid, ToFloat(byte >> (group % 2 * 4) & 15));
}

template <typename Act>
DEVICE void Stage(const LinearArguments& a, int64_t row, int64_t column, int first, int count,
                  typename Types<Act>::Operand* q, typename Types<Act>::Operand* w) {
  using Operand = typename Types<Act>::Operand;
  const Act* const from = static_cast<const Act*>(a.q);
  for (int i = Thread(); i < kTile * kChunk; i += kThreads) {
    const int line = i / kChunk;
    const int k = i % kChunk;
    const bool live = k < count;
    q[k * kStride + line] = live && row + line < a.m
                                ? static_cast<Operand>(from[(row + line) * a.k + first + k])
                                : Operand{0};
    w[k * kStride + line] = live && column + line < a.n
                                ? static_cast<Operand>(WeightAt(a, column + line, first + k))
                                : Operand{0};
  }
}

template <typename Act>
DEVICE void Run(const LinearArguments& a) {
  using Operand = typename Types<Act>::Operand;
  using Sum = typename Types<Act>::Sum;
  Operand* const q = reinterpret_cast<Operand*>(Shared());
  Operand* const w = q + kChunk * kStride;
  const int64_t tiles_n = (a.n + kTile - 1) / kTile;
  const int64_t row = Block() / tiles_n * kTile;
  const int64_t column = Block() % tiles_n * kTile;
  const int my_row = Thread() / 16 * 4;
  const int my_column = Thread() % 16 * 4;
  Fold folds[4][4];
  for (int j = 0; j < 4 && a.several != 0; ++j) {
    const float bias = column + my_column + j < a.n ? a.bias[column + my_column + j] : 0.0f;
    for (int i = 0; i < 4; ++i) folds[i][j].y = bias;
  }
  int run = 0;
  for (int start = 0; start < a.k; start += a.run, ++run) {
    const int end = a.k - start < a.run ? a.k : start + a.run;
    Sum sum[4][4] = {};
    for (int first = start; first < end; first += kChunk) {
      const int count = end - first < kChunk ? end - first : kChunk;
      Sync();
      Stage<Act>(a, row, column, first, count, q, w);
      Sync();
      for (int k = 0; k < count; ++k) {
        UNROLL for (int i = 0; i < 4; ++i) {
          UNROLL for (int j = 0; j < 4; ++j) {
            sum[i][j] =
                MultiplyAdd(q[k * kStride + my_row + i], w[k * kStride + my_column + j], sum[i][j]);
          }
        }
      }
    }
    const int scale_group = run / a.scale_runs;
    const bool ends = (run + 1) % a.scale_runs == 0 || end == a.k;
    float act_scale[4] = {};
    for (int i = 0; i < 4 && a.several != 0; ++i) {
      const int64_t m = row + my_row + i;
      if (m < a.m) act_scale[i] = a.scale[m * a.scale_stride + run / a.act_runs];
    }
    UNROLL for (int j = 0; j < 4; ++j) {
      const int64_t n = column + my_column + j;
      const float weight_scale = n < a.n ? WeightScale(a, scale_group, n) : 0.0f;
      UNROLL for (int i = 0; i < 4; ++i) {
        folds[i][j].Add(a.several != 0, act_scale[i], weight_scale, ends, SumAsFloat(sum[i][j]));
      }
    }
  }
  UNROLL for (int i = 0; i < 4; ++i) {
    const int64_t m = row + my_row + i;
    if (m >= a.m) continue;
    const float scale = a.several != 0 ? 1.0f : a.scale[m * a.scale_stride];
    UNROLL for (int j = 0; j < 4; ++j) {
      const int64_t n = column + my_column + j;
      if (n < a.n) a.y[m * a.n + n] = folds[i][j].Result(a, scale, a.bias[n]);
    }
  }
}

}  // namespace linear_plain

KERNEL(256) fp4dit_linear_plain_int8(fp4dit::gpu::LinearArguments a) {
  linear_plain::Run<int8_t>(a);
}
KERNEL(256) fp4dit_linear_plain_int16(fp4dit::gpu::LinearArguments a) {
  linear_plain::Run<int16_t>(a);
}
KERNEL(256) fp4dit_linear_plain_float(fp4dit::gpu::LinearArguments a) {
  linear_plain::Run<float>(a);
}
