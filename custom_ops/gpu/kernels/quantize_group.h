// One group of inputs to grid integers, by a warp or a block; included by kernels.

#ifndef FP4DIT_GPU_KERNELS_QUANTIZE_GROUP_H_
#define FP4DIT_GPU_KERNELS_QUANTIZE_GROUP_H_

#include "gpu/arguments.h"
#include "gpu/device.h"
#include "gpu/kernels/exp.h"
#include "gpu/kernels/floats.h"

namespace {

using fp4dit::gpu::QuantizeArguments;

DEVICE uint32_t Larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// The bits of magnitudes are ordered as the magnitudes are, NaN above all.
DEVICE uint32_t LargestOfWarp(uint32_t v) {
  UNROLL for (int mask = 16; mask > 0; mask /= 2) v = Larger(v, ShuffleXor(v, mask));
  return v;
}

// The nearest grid integer of t, ties to even, with the sign of t. In its binade the grid is the
// multiples of a power of two; so they are of floats near 1.5 * 2^23 times that.
DEVICE float RoundToGrid(float t, int mantissa_bits) {
  const uint32_t smallest = static_cast<uint32_t>(127 + mantissa_bits) << 23;
  const uint32_t adder = (static_cast<uint32_t>(23 - mantissa_bits) << 23) + (1u << 22);
  const float big = AsFloat(Larger(AsBits(t) & kInfinity, smallest) + adder);
  return AsFloat(AsBits(Sub(Add(t, big), big)) | (AsBits(t) & 0x80000000u));
}

// A group of inputs, or of their GELU, and the threads that share it.
template <bool kGelu>
struct Group {
  const float* x;
  int64_t size;
  int thread, threads;
  uint32_t largest;  // bits of the largest magnitude, or of `cut`
  float cut;         // infinite, or what magnitudes are cut off at

  DEVICE float Value(int64_t i) const { return kGelu ? Gelu(x[i]) : x[i]; }
  DEVICE float At(int64_t i) const {
    const float v = Value(i);
    if (v > cut) return cut;
    return v < -cut ? -cut : v;
  }
};

// Sum of the squares of rounding errors in 64ths of an integer, which fits for the groups that the
// host gives one warp.
template <bool kGelu>
DEVICE uint32_t ErrorOf(const Group<kGelu>& group, float factor, int mantissa_bits) {
  uint32_t sum = 0;
  for (int64_t i = group.thread; i < group.size; i += group.threads) {
    const float t = Mul(group.At(i), factor);
    const float parts = Mul(Sub(t, RoundToGrid(t, mantissa_bits)), 64.0f);
    const auto error = static_cast<int32_t>(Sub(Add(parts, kMagic), kMagic));
    sum += static_cast<uint32_t>(error * error);
  }
  UNROLL for (int mask = 16; mask > 0; mask /= 2) sum += ShuffleXor(sum, mask);
  return sum;
}

// The largest integer that costs the least rounding; the earlier of two.
template <bool kGelu>
DEVICE float BestCandidate(const QuantizeArguments& a, const Group<kGelu>& group) {
  float best = a.candidates[0];
  if (a.candidate_count == 1) return best;
  const float amax = AsFloat(group.largest);
  uint64_t least = ErrorOf(group, Div(best, amax), a.mantissa_bits);
  for (int c = 1; c < a.candidate_count; ++c) {
    const float other = a.candidates[c];
    const uint64_t error = ErrorOf(group, Div(other, amax), a.mantissa_bits);
    const auto square = static_cast<uint64_t>(Mul(other, other));
    const auto best_square = static_cast<uint64_t>(Mul(best, best));
    if (error * best_square >= least * square) continue;
    best = other;
    least = error;
  }
  return best;
}

template <typename Integer, bool kGelu>
DEVICE void QuantizeGroup(const QuantizeArguments& a, const Group<kGelu>& group, bool finite,
                          Integer* q, float* scale) {
  const float amax = AsFloat(group.largest);
  const bool live = finite && amax >= kSmallestAmax;
  const float most = live ? BestCandidate(a, group) : 1.0f;
  const float factor = live ? Div(most, amax) : 0.0f;
  for (int64_t i = group.thread; i < group.size; i += group.threads) {
    q[i] = live ? static_cast<Integer>(RoundToGrid(Mul(group.At(i), factor), a.mantissa_bits))
                : static_cast<Integer>(0);
  }
  if (group.thread == 0) *scale = live ? Div(amax, most) : finite ? 0.0f : AsFloat(kNan);
}

// Group `index` of row `row`, whose inputs are at `x`, by this warp or, with the others' largest
// magnitudes in `warps`, by the block.
template <typename Integer, bool kGelu = false>
DEVICE void QuantizeGroupAt(const QuantizeArguments& a, const float* x, int64_t row, int64_t index,
                            bool alone, uint32_t* warps) {
  const int lane = Thread() % 32;
  const int64_t first = index * a.group_size;
  Group<kGelu> group;
  group.x = x + first;
  group.size = a.k - first < a.group_size ? a.k - first : a.group_size;
  group.thread = alone ? lane : Thread();
  group.threads = alone ? 32 : Threads();
  uint32_t largest = 0;
  for (int64_t i = group.thread; i < group.size; i += group.threads) {
    largest = Larger(largest, AsBits(group.Value(i)) & 0x7fffffffu);
  }
  largest = LargestOfWarp(largest);
  if (!alone) {
    if (lane == 0) warps[Thread() / 32] = largest;
    Sync();
    for (int w = 0; w < Threads() / 32; ++w) largest = Larger(largest, warps[w]);
  }
  const bool given = a.largest > 0.0f;
  group.largest = given ? AsBits(a.largest) : largest;
  group.cut = given ? a.largest : AsFloat(kInfinity);
  Integer* const q = static_cast<Integer*>(a.q) + row * a.k + first;
  QuantizeGroup(a, group, largest < kInfinity, q, a.scale + row * a.groups + index);
}

}  // namespace

#endif  // FP4DIT_GPU_KERNELS_QUANTIZE_GROUP_H_
