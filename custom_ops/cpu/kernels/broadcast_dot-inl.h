// Dots whose inner loop multiplies vectors of weights by the activations of one row, broadcast.
// Included by files of kernels only; see linear_tile-inl.h on the anonymous namespace.
//
// `V` is a vector of 32-bit lanes: Vector<256> of x86-inl.h or what has the same members.

#ifndef FP4DIT_CPU_KERNELS_BROADCAST_DOT_INL_H_
#define FP4DIT_CPU_KERNELS_BROADCAST_DOT_INL_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/decode_panel-inl.h"
#include "cpu/kernels/fold-inl.h"
#include "cpu/kernels/linear_tile-inl.h"

namespace fp4dit {
namespace {

// Bytes of no pattern, for the loops that measure: processors that compute on zeros or ones use
// less power than at work, and run faster. As floats their exponents are ordinary.
inline void FillWithNoise(uint8_t* bytes, size_t size) {
  uint32_t state = 1;
  for (size_t i = 0; i < size; ++i) {
    state = state * 1664525u + 1013904223u;
    bytes[i] = i % 4 == 3 ? 0x3f : static_cast<uint8_t>(state >> 24);
  }
}

// `rounds` times ten independent steps of an instruction, which is as many as its latency times the
// units; see LinearKernel::peak. `Multiply` has Total, Zero, Load, Broadcast and Step.
template <typename Multiply>
double RepeatStep(size_t rounds, double products) {
  constexpr size_t kTotals = 10;
  using Total = typename Multiply::Total;
  using Weight = typename Multiply::Weight;
  using Factor = typename Multiply::Factor;
  alignas(64) uint8_t noise[128];
  FillWithNoise(noise, sizeof(noise));
  const auto* const numbers = reinterpret_cast<const typename Multiply::Act*>(noise);
  const Factor act = Multiply::Broadcast(numbers);
  Weight weight = Multiply::Load(numbers + 64 / sizeof(*numbers));
  Total total[kTotals];
  Unroll<kTotals>([](size_t i, Total(&t)[kTotals]) { t[i] = Multiply::Zero(); }, total);
  for (size_t i = 0; i < rounds; ++i) {
    Unroll<kTotals>(
        [](size_t j, Total(&t)[kTotals], Weight& w, const Factor& a) {
          w = Multiply::Registers::Kept(w);  // or the compiler would see that nothing changes
          t[j] = Multiply::Registers::Kept(Multiply::Step(t[j], w, a));
        },
        total, weight, act);
  }
  const volatile uint8_t* used = reinterpret_cast<const uint8_t*>(total);
  for (size_t i = 0; i < sizeof(total); ++i) static_cast<void>(used[i]);
  return static_cast<double>(rounds) * static_cast<double>(kTotals) * products;
}

template <typename Multiply, typename Dot>
struct CodesRow;

// A `Multiply` is the instruction:
//   Registers                        V
//   Act, Accumulator, Total          types of an activation, a sum in memory, a vector of sums
//   Weight, Factor                   vectors of weights, kLanes channels each, and of activations
//   kUnit, kReach                    inputs that it sums a channel; see Reach
//   Decode<kBlock>                   see linear_tile-inl.h
//   Load(weights), Broadcast(q)      to registers
//   Zero, LoadTotal, StoreTotal      of totals
//   Step(total, weight, factor)      total plus products
//   ToFloat(total)
//   kFlip                            of int8: what is xored to weights to make them unsigned, or 0
//   kSums                            whether sums begin at what a group's sum of activations says:
//                                    then it has Start(sum), and SumRow of a dot
//   StepHalf(total, weight, factor)  Step of the lower half; the other half is any
//   kReadsCodes                      whether it has what run_codes-inl.h wants
//   kFactors                         blocks whose activations one vector holds; if several, it has
//                                    LoadFactors(q), and StepOf<I>(total, weight, factors), which
//                                    is Step with the I-th block's
// Of a panel's channels from kColumns_ on, half a vector, there are no sums.
template <typename Multiply, size_t kPanel_, size_t kRows_, size_t kColumns_ = kPanel_>
struct BroadcastDot {
  using V = typename Multiply::Registers;
  using Act = typename Multiply::Act;
  using Operand = Act;
  using Accumulator = typename Multiply::Accumulator;
  using Total = typename Multiply::Total;
  using Weight = typename Multiply::Weight;
  using Factor = typename Multiply::Factor;
  static constexpr size_t kPanel = kPanel_;
  static constexpr size_t kRows = kRows_;
  static constexpr size_t kUnit = Multiply::kUnit;
  static constexpr size_t kStep = kUnit;
  static constexpr size_t kChunk = 64 * kUnit;
  static constexpr Reach kReach = Multiply::kReach;
  static constexpr bool kSums = Multiply::kSums;
  static constexpr size_t kVectors = kPanel / V::kLanes;
  static constexpr size_t kColumns = kColumns_;
  static_assert(kColumns == kPanel || kColumns == kPanel - V::kLanes / 2, "all, or half a vector");

  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t k, size_t blocks,
                       Operand* out) {
    if constexpr (sizeof(Act) == 1) {
      if (tile.multipliers != nullptr) {
        return DecodeMultiplied<V, kUnit, kPanel>(tile, packed, k, blocks, Multiply::kFlip, out);
      }
    }
    return Multiply::template Decode<kPanel * kUnit>(tile, packed, blocks, out);
  }

  // The totals of R rows live in registers: only unrolled loops may index them.
  template <size_t R>
  using Totals = Total[R][kVectors];
  using Rest = const DotRows<BroadcastDot>;

  static Total First(Rest& rows, size_t r) {
    if constexpr (kSums) {
      return Multiply::Start(rows.group_sum[r]);
    } else {
      return Multiply::Zero();
    }
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Begin(Rest& rows, Totals<R>& total) {
    Unroll<R * kVectors>(
        [](size_t i, Totals<R>& t, Rest& rest) FP4DIT_INLINE_LAMBDA {
          const size_t r = i / kVectors;
          const size_t at = r * kPanel + i % kVectors * V::kLanes;
          t[r][i % kVectors] =
              rest.first ? First(rest, r) : Multiply::LoadTotal(rest.accumulator + at);
        },
        total, rows);
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Step(const Act* q, size_t stride, const Operand* weight,
                                        Totals<R>& total) {
    Weight w[kVectors];
    Unroll<kVectors>(
        [](size_t v, Weight(&to)[kVectors], const Operand* from)
            FP4DIT_INLINE_LAMBDA { to[v] = Multiply::Load(from + v * V::kLanes * kUnit); },
        w, weight);
    Unroll<R>(
        [](size_t r, Totals<R>& t, Weight(&weights)[kVectors], const Act* acts, size_t distance)
            FP4DIT_INLINE_LAMBDA {
              const Factor factor = Multiply::Broadcast(acts + r * distance);
              Unroll<kVectors>(
                  [](size_t v, Total(&row)[kVectors], Weight(&all)[kVectors], const Factor& f)
                      FP4DIT_INLINE_LAMBDA {
                        if constexpr (kColumns < kPanel) {
                          if (v + 1 == kVectors) {
                            row[v] = Multiply::StepHalf(row[v], all[v], f);
                            return;
                          }
                        }
                        row[v] = Multiply::Step(row[v], all[v], f);
                      },
                  t[r], weights, factor);
            },
        total, w, q, stride);
  }

  // The same of as many blocks as a vector holds activations of, one weight at a time.
  static constexpr size_t kFactors = Multiply::kFactors;
  template <size_t R, size_t I = 0>
  static FP4DIT_ALWAYS_INLINE void StepOf(Factor (&factors)[R], const Operand* weight,
                                          Totals<R>& total) {
    if constexpr (I < kFactors) {
      Unroll<kVectors>(
          [](size_t v, Totals<R>& t, Factor(&all)[R], const Operand* from) FP4DIT_INLINE_LAMBDA {
            const Weight w = Multiply::Load(from + v * V::kLanes * kUnit);
            Unroll<R>(
                [](size_t r, Totals<R>& sums, Factor(&of)[R], const Weight& by, const size_t& at)
                    FP4DIT_INLINE_LAMBDA {
                      // In this order, or the compiler would hold more weights than there are
                      // registers.
                      sums[r][at] = V::Kept(Multiply::template StepOf<I>(sums[r][at], by, of[r]));
                    },
                t, all, w, v);
          },
          total, factors, weight);
      StepOf<R, I + 1>(factors, weight + kPanel * kUnit, total);
    }
  }
  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void StepMany(const Act* q, size_t stride, const Operand* weight,
                                            Totals<R>& total) {
    Factor factors[R];
    Unroll<R>([](size_t r, Factor(&to)[R], const Act* acts, size_t distance)
                  FP4DIT_INLINE_LAMBDA { to[r] = Multiply::LoadFactors(acts + r * distance); },
              factors, q, stride);
    StepOf<R>(factors, weight, total);
  }

  static constexpr bool kFoldsActs = true;
  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void FoldActs(Rest& rows, Totals<R>& total) {
    Unroll<R>(
        [](size_t r, Totals<R>& t, const float* scale, const size_t& stride,
           float* sum) FP4DIT_INLINE_LAMBDA {
          const auto factor = V::Splat(scale[r * stride]);
          float* const first = sum + r * kPanel;
          Unroll<kVectors>(
              [](size_t v, Total(&row)[kVectors], const typename V::Float& by, float* const& to)
                  FP4DIT_INLINE_LAMBDA {
                    float* const at = to + v * V::kLanes;
                    V::StoreFloats(at, V::Fma(by, Multiply::ToFloat(row[v]), V::LoadFloats(at)));
                  },
              t[r], factor, first);
        },
        total, rows.act_scale, rows.tile->act_stride, rows.sum);
  }

  // The totals of the only group are y's, without a sum in memory. Nothing is asked between them:
  // that would cost as much as what it saves. The last vector may not be whole.
  static constexpr bool kFinishes = true;
  enum Finish { kFused, kPlain, kKeeping };
  template <size_t R, Finish kHow, bool kWhole>
  static FP4DIT_ALWAYS_INLINE void FinishTotals(Rest& rows, Totals<R>& total) {
    using Float = typename V::Float;
    Unroll<R>(
        [](size_t r, Totals<R>& t, Rest& rest) FP4DIT_INLINE_LAMBDA {
          const LinearTile& tile = *rest.tile;
          const size_t row = rest.finishes + r;
          const Float scale = V::Splat(tile.scale[row * tile.scale_stride]);
          const Float keep = V::Splat(kHow == kKeeping ? tile.keep[row] : 0.0f);
          float* const y = tile.y + row * tile.y_stride;
          Unroll<kVectors>(
              [](size_t v, Total(&of_row)[kVectors], Rest& all, const Float& by, const Float& kept,
                 float* const& to) FP4DIT_INLINE_LAMBDA {
                const size_t n = v * V::kLanes;
                const Float sum = V::Fma(V::LoadFloats(all.group_scale + n),
                                         Multiply::ToFloat(of_row[v]), V::Splat(0.0f));
                const Float bias = V::LoadFloats(all.tile->bias + n);
                Float y_n = kHow == kPlain ? V::Add(V::Mul(by, sum), bias) : V::Fma(by, sum, bias);
                if (kWhole || v + 1 < kVectors) {
                  if (kHow == kKeeping) y_n = V::Add(V::Mul(V::LoadFloats(to + n), kept), y_n);
                  V::StoreFloats(to + n, y_n);
                } else {
                  const size_t left = all.tile->columns - n;
                  if (kHow == kKeeping) y_n = V::Add(V::Mul(V::LoadFirst(to + n, left), kept), y_n);
                  V::StoreFirst(to + n, y_n, left);
                }
              },
              t[r], rest, scale, keep, y);
        },
        total, rows);
  }

  template <size_t R, Finish kHow>
  static FP4DIT_ALWAYS_INLINE void FinishTotals(Rest& rows, Totals<R>& total) {
    const size_t columns = rows.tile->columns;
    const bool fits = kHow == kFused || rows.tile->plain == (kHow == kPlain);
    if (columns == kPanel && fits) return FinishTotals<R, kHow, true>(rows, total);
    if (columns > kPanel - V::kLanes && fits) return FinishTotals<R, kHow, false>(rows, total);
    Unroll<R * kVectors>(
        [](size_t i, Totals<R>& t, Rest& rest) FP4DIT_INLINE_LAMBDA {
          const auto scale = V::LoadFloats(rest.group_scale + i % kVectors * V::kLanes);
          const auto sum = Multiply::ToFloat(t[i / kVectors][i % kVectors]);
          V::StoreFloats(rest.sum + i * V::kLanes, V::Fma(scale, sum, V::Splat(0.0f)));
        },
        total, rows);
    FinishRows<V, kPanel>(*rows.tile, rows.finishes, R, rows.sum);
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void End(Rest& rows, Totals<R>& total) {
    if (rows.last && rows.act_scale != nullptr) return FoldActs<R>(rows, total);
    if (rows.last && rows.finishes != SIZE_MAX) {
      const bool keeps = rows.tile->keep != nullptr;
      if (!keeps && !rows.tile->plain) return FinishTotals<R, kFused>(rows, total);
      return FinishTotals<R, sizeof(Act) == 1 ? kPlain : kKeeping>(rows, total);
    }
    if (rows.last) return FoldTotals<V, BroadcastDot, R>(rows, total);
    Unroll<R * kVectors>(
        [](size_t i, Totals<R>& t, Accumulator* to) FP4DIT_INLINE_LAMBDA {
          const size_t at = i / kVectors * kPanel + i % kVectors * V::kLanes;
          Multiply::StoreTotal(to + at, t[i / kVectors][i % kVectors]);
        },
        total, rows.accumulator);
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE typename V::Float TotalOf(Totals<R>& total, size_t row, size_t v) {
    return Multiply::ToFloat(total[row][v]);
  }

  template <size_t R>
  static void Rows(Rest& rows) {
    Totals<R> total;
    Begin<R>(rows, total);
    const Operand* weight = rows.operand;
    const Act* q = rows.q;
    size_t left = rows.blocks;
    if constexpr (kFactors > 1) {
      constexpr size_t kInputs = kFactors * kUnit;
      for (; left >= kFactors; left -= kFactors, weight += kPanel * kInputs, q += kInputs) {
        StepMany<R>(q, rows.q_stride, weight, total);
      }
    }
    for (; left > 0; --left, weight += kPanel * kUnit, q += kUnit) {
      Step<R>(q, rows.q_stride, weight, total);
    }
    End<R>(rows, total);
  }

  static constexpr bool kSumsRows = kSums;
  static int32_t SumRow(const int8_t* q, size_t size, int32_t* largest) {
    return Multiply::template SumRow<Multiply>(q, size, largest);
  }
  static constexpr bool kReadsCodes = Multiply::kReadsCodes;
  static size_t RunCodes(Rest& rows, const uint8_t* packed) {
    return CodesRow<Multiply, BroadcastDot>::Run(rows, packed);
  }

  template <typename Scale, typename Sum>
  static void FoldPanel(Scale scale, const Sum* sum, float* y) {
    FoldVectors<V, kPanel>(scale, sum, y);
  }
  static void Finish(const LinearTile& tile, const float* sum) { FinishRows<V, kPanel>(tile, sum); }

  static double Peak(size_t rounds) {
    return RepeatStep<Multiply>(rounds, static_cast<double>(V::kLanes * kUnit));
  }
};

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_BROADCAST_DOT_INL_H_
