// The plain interface of the kernels: one table of function pointers an instruction set.
//
// The oath: a kernel does not allocate, starts no threads, keeps no state, throws nothing and does
// not branch on the format. The caller validates, packs, and schedules; pointers are never null and
// sizes never zero unless said so.
//
// A file of kernels includes intrinsics, <cstdint>, <cstddef>, this header and linear_tile-inl.h,
// and keeps everything but its table in an anonymous namespace: a shared inline function would be
// merged by the linker, and the baseline might then run another file's instructions.

#ifndef FP4DIT_CPU_KERNELS_KERNELS_H_
#define FP4DIT_CPU_KERNELS_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace fp4dit {

// How FpLinear multiplies.
//   kInt8   int8 x int8 -> int32: |q| <= 128, |weight| <= 127
//   kInt16  int16 x int16 -> int32; the activations may also be int8
//   kFloat  float32 fma chain over ascending k
// Integer sums are exact: the op has checked that no kernel's can leave int32, see Reach. Of
// activations that are outside their format they are what they would be, modulo 2^32.
enum DotKind : int { kDotInt8, kDotInt16, kDotFloat, kDotKinds };

// What a kernel may hold on the way to a sum of `size` products, beside the products: at most
// RoundUp(max_act, act_step) * (max_weight + weight_offset) * size.
struct Reach {
  int32_t act_step;       // 256 if it cuts activations into bytes, else 1
  int32_t weight_offset;  // the most that it adds to weights, to make them unsigned
};

// The contract of kernels on every machine, so that all accept and refuse the same nodes: none may
// declare more. numerics.largest_sum is the same. Wider, it would refuse nodes that models have.
constexpr Reach kMostReach[kDotKinds] = {{1, 128}, {256, 0}, {1, 0}};

constexpr bool IsWithin(const Reach& reach, const Reach& most) {
  return reach.act_step <= most.act_step && reach.weight_offset <= most.weight_offset;
}

// The element types of grid integers, which index entries of the table.
enum IntegerType : int { kInt8Type, kInt16Type, kFloatType, kIntegerTypes };

// How packed weights are held: as 4-bit codes, or as the narrowest type that holds the grid exactly
// (every grid integer has at most 8 significant bits, so bfloat16 holds the widest formats).
enum WeightStorage : int { kNibbles, kBytes, kShorts, kBfloats, kWeightStorages };

// Most rows of one LinearTile: a bound of the kernels' stack.
constexpr size_t kMaxTileRows = 72;

// Packed weights: a panel holds `panel_width` output channels (missing ones are zeros). Inside it
// come the groups in ascending order, each padded with zeros to a multiple of `k_step` inputs and
// cut into blocks of `k_unit`. A block has its elements channel by channel: element
// n * k_unit + i is channel n, input i. As 4-bit codes, byte j of a block holds element j in the
// low nibble and element j + half a block in the high one.
struct PanelLayout {
  size_t panel_width;
  size_t k_unit;
  size_t k_step;  // a multiple of k_unit
};

// Rows of activations, to be laid out for the kernel that reads them.
struct Activations {
  const void* q;       // [rows, k]
  IntegerType q_type;  // the dot kind's own type, or int8 for kDotInt16
  size_t rows;
  size_t k;
  size_t group_size;            // 1 to k
  size_t multiplier_group = 0;  // the weights', see LinearTile; 0: they have no multipliers
};

// Weights that stay codes beside their multipliers come in groups of a multiple of this many
// inputs: a block of no layout is in two of them.
constexpr size_t kMultiplierStep = 8;

// `rows` rows of activations times one panel of weights.
struct LinearTile {
  const void* staged;        // the rows, as the kernel's `stage` left them
  const float* scale;        // of row r: scale[r * scale_stride]
  size_t scale_stride;       // 0 or 1
  const uint8_t* panel;      // see PanelLayout
  const void* decoded;       // null, or what the kernel's `decode` made of the panel
  const float* group_scale;  // [scale groups, panel_width]
  size_t scale_group;        // inputs that share one of them: whole groups, or k
  const float* bias;         // [panel_width]
  // Null, or one for each multiplier_group inputs, a multiple of kMultiplierStep, and channel:
  // [multiplier groups, panel_width], 0 to 15. A weight is its code's grid integer times that:
  // int8. Whole groups, or parts of one, are in a multiplier group. Of kDotInt8 and kNibbles only.
  const uint8_t* multipliers;
  size_t multiplier_group;
  // Null: `scale` has the rows' scales, and y = fma(scale, sum of fma(group scale, group), bias).
  // Else one for each row and act_group inputs, whole groups: of row r, act_scale[r * act_stride].
  // Groups are summed by fma under it, and these sums, of each scale group, by fma onto the bias.
  const float* act_scale;
  size_t act_stride;
  size_t act_group;
  bool plain;  // y = scale * sum + bias, rounded twice, in place of fma
  // Null, or one for each row, if neither plain nor with act_scale: what is said above is added to
  // y * keep.
  const float* keep;
  const int8_t* table;  // [16] grid integers of the codes; any sixteen if not kNibbles
  WeightStorage storage;
  int32_t max_weight;  // largest |grid integer| of a weight, its multiplier left aside
  int32_t max_act;     // what `stage` returned
  float* y;            // [rows, columns], rows y_stride apart
  size_t y_stride;
  size_t columns;  // 1 to panel_width
  size_t rows;     // 1 to kMaxTileRows
  size_t k;
  size_t group_size;  // 1 to k
};

// A kernel reads activations that were staged first: copied group by group, padded as the weights
// are, so that neither the edges of a row nor the distance of rows concern its inner loop. The
// same staged rows serve every panel.
struct LinearKernel {
  PanelLayout layout;
  size_t row_step;       // rows that it multiplies at a time: full speed at multiples
  WeightStorage widest;  // of the weights that it takes: this, and those before it in the list
  Reach reach;
  size_t (*staged_bytes)(const Activations& rows);
  // Returns the largest magnitude of int8 activations, a bound of sums (0 where it is not needed).
  // `staged` is 64-byte aligned.
  int32_t (*stage)(const Activations& rows, void* staged);
  void (*run)(const LinearTile& tile);
  // Decodes a tile's panel once, for many tiles of rows: `to` is 64-byte aligned.
  size_t (*decoded_bytes)(const LinearTile& tile);
  void (*decode)(const LinearTile& tile, void* to);
  // Repeats the kernel's dot-product instruction on registers `rounds` times; returns the number of
  // products, or 0 where nothing would be measured. It is the limit that benchmarks compare with.
  double (*peak)(size_t rounds);
  // Whether `stage` copies rows of one group and whole steps as they are: they need no staging.
  bool copies_rows = false;
  size_t most_columns = SIZE_MAX;  // of a tile: what is in panels behind them has no sums
};

// What quantizing needs of a format.
struct QuantizeGrid {
  float max_integer;
  int32_t mantissa_bits;
  float largest = 0.0f;  // the magnitude that becomes max_integer; 0: the row's own
};

// One row: q [k] grid integers of the table entry's type, and the row's scale. See
// numerics.quantize. No number of the row exceeds grid.largest, if that is given.
using QuantizeRow = void (*)(const float* x, size_t k, const QuantizeGrid& grid, void* q,
                             float* scale);
// What rounding of a row that is quantized costs: the sum of rint(64 * (x * factor - q))^2, which
// the caller knows to fit; 0 of a row that has no scale. See numerics.quantize.
using QuantizeError = int32_t (*)(const float* x, size_t k, const QuantizeGrid& grid);
// The most elements whose errors fit, for any grid of int8.
constexpr size_t kMostErrors = 1024;

// One row times Hadamard matrices of `block` (a power of two), the rest of it of smaller powers:
// see numerics.hadamard. y is not x.
using HadamardRow = void (*)(const float* x, size_t k, size_t block, float* y);
constexpr size_t kMostBlock = 1024;
// 2^(-e / 2) of a matrix of 2^e, rounded once.
constexpr float kHadamardFactors[] = {1.0f,    0x1.6a09e6p-1f, 0.5f,    0x1.6a09e6p-2f,
                                      0.25f,   0x1.6a09e6p-3f, 0.125f,  0x1.6a09e6p-4f,
                                      0.0625f, 0x1.6a09e6p-5f, 0.03125f};

// y[i] = gelu(x[i]), see activations.gelu. y is not x.
using GeluRow = void (*)(const float* x, size_t count, float* y);
// The constants of activations.gelu: 2 sqrt(2 / pi), and 0.044715 times that.
constexpr float kGeluLinear = 1.59576912f;
constexpr float kGeluCubic = 0.0713548139f;

// A row's layer norm, see norms.layer_norm: y = x - mean, and what makes it of variance one; then
// y = fma(x * factor, gain, shift), where y may be x.
struct NormKernels {
  float (*center)(const float* x, size_t k, float epsilon, float* y);
  void (*modulate)(const float* x, float factor, const float* gain, const float* shift,
                   size_t count, float* y);
};
constexpr size_t kNormLanes = 64;  // partial sums

// A run of integers under one scale: y[i] = q[i] * scale.
using DequantizeRun = void (*)(const void* q, size_t count, float scale, float* y);

// Probabilities, times the values' scales, become 16-bit integers, as of a format of 15 mantissa
// bits.
constexpr QuantizeGrid kProbabilities = {32767.0f, 15};

// Rows of attention scores against one tile of keys, see attention.attention.
struct SoftmaxTile {
  float* scores;  // [rows, stride]; become exp(score - max) * value_scale
  size_t stride;
  const float* value_scale;  // [count]
  size_t count;              // a multiple of kSoftmaxLanes: what is missing is -inf, with scale 0
  size_t rows;
  float* max;     // [rows] of earlier tiles, -inf before the first; become those of this one too
  float* shrink;  // [rows] out: exp(earlier max - max)
  float* sum;     // [rows]; becomes sum * shrink + exp(score - max), these in kSoftmaxLanes sums
  int16_t* q;     // [rows, q_stride] out: kProbabilities of exp(score - max) * value_scale, `count`
  size_t q_stride;  // at least; elements past it are the next row's
  float* scale;     // [rows] out: theirs
};
using SoftmaxKernel = void (*)(const SoftmaxTile& tile);
constexpr size_t kSoftmaxLanes = 16;

// The constants of attention.exp. ln 2 is split so that n * high is exact.
constexpr float kExpLog2E = 1.44269502f;
constexpr float kExpLn2High = 0.693359375f;
constexpr float kExpLn2Low = -2.12194442e-4f;
constexpr float kExpRounder = 12582912.0f;  // 1.5 * 2^23
constexpr float kExpLeast = -87.0f;         // below this the result is 0
constexpr size_t kExpTermCount = 6;
constexpr float kExpTerms[kExpTermCount] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};

constexpr size_t kNarrowKernels = 5;

// A null entry means: not here, use the next lower instruction set's.
struct Kernels {
  LinearKernel linear[kDotKinds];
  QuantizeRow quantize[kIntegerTypes];
  DequantizeRun dequantize[kIntegerTypes];
  SoftmaxKernel softmax = nullptr;
  LinearKernel narrow[kNarrowKernels] =
      {};                         // kDotInt16 in panels of other widths, for few channels
  QuantizeError error = nullptr;  // of grid integers that are int8
  HadamardRow hadamard = nullptr;
  GeluRow gelu = nullptr;
  NormKernels norm = {};
};

// A row whose largest magnitude is below this, 2^-90, counts as zero.
constexpr float kSmallestAmax = 8.077935669463161e-28f;

}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_KERNELS_H_
