// The arguments of the kernels, one struct each, which the host fills and passes by value. Pointers
// are of the device; tensors are dense, their rows one after the other.

#ifndef FP4DIT_GPU_ARGUMENTS_H_
#define FP4DIT_GPU_ARGUMENTS_H_

#include "gpu/types.h"

namespace fp4dit::gpu {

constexpr int kMostCandidates = 4;

// numerics.quantize and quantize_static: x [rows, k] to q [rows, k] and scale [rows, groups].
struct QuantizeArguments {
  const float* x;
  void* q;
  float* scale;
  int64_t count;  // groups of all rows
  int64_t k, group_size, groups;
  float largest;  // a magnitude that becomes the largest integer; 0: the group's own
  int32_t mantissa_bits;
  int32_t warps;  // that quantize a group: 1, or all of a block
  int32_t candidate_count;
  float candidates[kMostCandidates];  // largest integers to choose from; one: the format's
};

// What follows from a row's sizes for kernels whose blocks take a part of a row each.
struct RowParts {
  int64_t k;      // elements of a row
  int64_t part;   // of them that a block takes
  int64_t parts;  // of a row
};

// Grid integers q [rows, k] times scales to y [rows, k].
struct DequantizeArguments {
  const void* q;
  const void* scale;  // of row r, group j: scale[r * scale_stride + j]
  float* y;
  RowParts rows;
  int64_t group_size, scale_stride;
  uint8_t scale_is_half;
};

// numerics.unpack and decode: codes [rows, row_bytes] to grid integers q [rows, k].
struct UnpackArguments {
  const uint8_t* codes;
  const float* grid;
  float* q;
  RowParts rows;
  int64_t row_bytes;
  int64_t wide;       // inputs that have codes; all others are 1 or -1 by a bit
  int32_t code_bits;  // 4 or 8
};

// Elements of the longest Hadamard matrix.
constexpr int kMostRotated = 1024;

// numerics.hadamard: x [rows, k] to y [rows, k], in matrices of `block`, then of the smaller powers
// of two that the rest of a row has.
struct HadamardArguments {
  const float* x;
  float* y;
  int64_t count;  // parts of all rows; a warp takes one
  RowParts rows;  // a part is a block, or the rest
};

// FpHadamardQuantize: rows of quantize.x, rotated; blocks take every `blocks`th row.
struct HadamardQuantizeArguments {
  QuantizeArguments quantize;
  RowParts parts;  // as of HadamardArguments
  int64_t rows, blocks;
  float* scratch;  // a row for each block; null: in shared memory, after a word a warp
};

// Rows that are broadcast to those of x: row r has `data` from r / inner % outer rows on.
struct BroadcastRows {
  const float* data;
  int64_t inner, outer;
};

// FpNormQuantize and its like: as FpHadamardQuantize's, of the rows' norms; parts.part is 0 where
// they are not rotated.
struct NormQuantizeArguments {
  HadamardQuantizeArguments rows;  // in shared memory a row comes after kNormLanes floats more
  BroadcastRows gain, shift;
  float epsilon;
};
// Partial sums of a row, see norms.layer_norm.
constexpr int kNormLanes = 64;

// Inputs of a step of linear's fragments: of one mma; steps of a stage.
constexpr int kStep = 32;
constexpr int kStageSteps = 4;
// Channels of a tile, to a multiple of which packed weights are padded.
constexpr int kTileN = 128;

// What fragments hold: codes of 4 bits, such codes and multipliers, bytes. Plain: there are none.
enum Storage { kPlain, kCodes, kMultiplied, kBytes };

// numerics.linear and linear_integer: q [m, k] to y [m, n]. Inputs are cut into runs, which are
// summed before any scale is applied: parts of groups of weights and of groups of activations.
struct LinearArguments {
  const void* q;
  const float* scale;  // of row r, group j: scale[r * scale_stride + j]
  float* y;
  const uint8_t* codes;        // see LinearWeights
  const uint8_t* multipliers;  // null: there are none
  const void* weight_scale;    // [groups, n_padded]
  const float* bias;
  const float* grid;  // grid integers of all codes; of the plain kernel
  void* scratch;      // fragments of bytes, decoded; or sums [slots, m, n_padded] of int32
  int64_t m, n, n_padded;
  int64_t scale_stride;
  int32_t k;
  int32_t run;         // inputs of a run, the last may be shorter
  int32_t scale_runs;  // runs of a group of weights
  int32_t act_runs;    // runs of a group of activations
  // Of the kernels of fragments: inputs are padded to whole steps, run by run.
  int32_t steps, run_steps;
  int32_t multiplier_steps;  // of a group that has a multiplier
  uint32_t low, high;        // magnitudes of the codes 0 to 3 and 4 to 7, a byte each
  // Where blocks share the inputs: stages of a block, steps of a sum, sums of a run.
  int32_t part_stages, slot_steps, run_slots;
  // Of the plain kernel: bytes of a row of codes and of multipliers, inputs of a multiplier, inputs
  // that have codes rather than signs, bits of a code, the code of -1.
  int32_t row_bytes, multiplier_bytes, multiplier_group, wide;
  int32_t code_bits, minus_one;
  uint8_t scale_is_half;
  uint8_t several;     // scales a row
  uint8_t plain;       // y = scale * sum + bias, rounded twice, in place of fma
  uint8_t short_sums;  // are below 2^22
  uint8_t aligned;     // rows and runs of q are whole pieces of 16 bytes
};

// Keys that are scored at a time, see attention.attention, and that are staged at a time.
constexpr int kKeyTile = 256;
constexpr int kKeyChunk = 32;

// attention.attention: q [batch, queries, heads, size], k and v [batch, keys, heads, size], bias [1
// or batch, 1, 1, 1 or keys] to y as q.
struct AttentionArguments {
  const void *q, *k, *v;
  const float *q_scale, *k_scale, *v_scale, *bias;
  float* y;
  int64_t bias_batch;  // between batches: 0 or keys
  int32_t bias_key;    // between keys: 0 or 1
  int32_t queries, keys, heads, size;
  int32_t row_blocks, parts;  // of queries; of the channels of a head
  float attention_scale;
  // Shared memory: 16-byte pieces from one row to the next, of q and k, and of v; how many chunks
  // of keys have room, 1 or 3.
  int32_t key_stride, value_stride, stages;
  int32_t copied_by_8;  // rows are whole units of 8 bytes
  int32_t value_group;  // keys whose products with v fit a sum: whole chunks
};

}  // namespace fp4dit::gpu

#endif  // FP4DIT_GPU_ARGUMENTS_H_
