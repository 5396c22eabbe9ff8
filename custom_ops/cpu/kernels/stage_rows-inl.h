// Staging rows for a dot of linear_tile-inl.h, which says what that is and why all is in an
// anonymous namespace. Included by files of kernels only.
//
// Staged rows are, group by group: int32 sums [rows] if wanted, then activations [rows, padded
// group].

#ifndef FP4DIT_CPU_KERNELS_STAGE_ROWS_INL_H_
#define FP4DIT_CPU_KERNELS_STAGE_ROWS_INL_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/kernels/kernels.h"

#if defined(__GNUC__)
#define FP4DIT_ALWAYS_INLINE inline __attribute__((always_inline))
#define FP4DIT_INLINE_LAMBDA __attribute__((always_inline))  // behind its parameters
#define FP4DIT_NEVER_INLINE __attribute__((noinline))
#define FP4DIT_PREFETCH(address) __builtin_prefetch(address)
// The compiler must have `value` in a register here, in this order with other such places: it may
// neither load nor compute it again, nor hold more of what comes between than registers do.
#define FP4DIT_KEEP(constraint, value) __asm__ volatile("" : "+" constraint(value))
#else
#define FP4DIT_ALWAYS_INLINE inline
#define FP4DIT_INLINE_LAMBDA
#define FP4DIT_NEVER_INLINE __declspec(noinline)
#define FP4DIT_PREFETCH(address) static_cast<void>(address)
#define FP4DIT_KEEP(constraint, value) static_cast<void>(value)
#endif

namespace fp4dit {
namespace {

// f(0, arguments...) to f(N - 1, arguments...), written out. Arrays that only such calls index live
// in registers, if `f` captures nothing: a closure would hold their address.
template <size_t N, size_t I = 0, typename Function, typename... Arguments>
FP4DIT_ALWAYS_INLINE void Unroll(const Function& f, Arguments&... arguments) {
  if constexpr (I < N) {
    f(I, arguments...);
    Unroll<N, I + 1>(f, arguments...);
  }
}

// a * b modulo 2^32, as sums in registers are.
inline int32_t Wrapped(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
}

constexpr size_t RoundUp(size_t size, size_t step) { return (size + step - 1) / step * step; }

// Bytes of one group of `size` inputs of `rows` staged rows.
template <typename Dot>
size_t StagedGroupBytes(size_t rows, size_t size) {
  const size_t row = RoundUp(size, Dot::kStep) * sizeof(typename Dot::Act);
  return rows * (row + (Dot::kSums ? sizeof(int32_t) : 0));
}

// Bytes of `size` inputs in groups of `group`.
template <typename Dot>
size_t StagedGroupsBytes(size_t rows, size_t size, size_t group) {
  const size_t rest = size % group;
  return size / group * StagedGroupBytes<Dot>(rows, group) +
         (rest != 0 ? StagedGroupBytes<Dot>(rows, rest) : 0);
}

template <typename Dot, typename = void>
constexpr bool kHasRunCodes = false;
template <typename Dot>
constexpr bool kHasRunCodes<Dot, std::enable_if_t<Dot::kReadsCodes>> = true;

// Inputs of a staged group: of a row that is multiplied from codes, multipliers have their own.
template <typename Dot>
size_t StagedGroup(size_t rows, size_t group_size, size_t multiplier_group) {
  const bool finer = rows == 1 && multiplier_group != 0 && multiplier_group < group_size;
  return kHasRunCodes<Dot> && finer ? multiplier_group : group_size;
}

template <typename Dot>
size_t StagedBytes(const Activations& a) {
  const size_t group = StagedGroup<Dot>(a.rows, a.group_size, a.multiplier_group);
  return StagedGroupsBytes<Dot>(a.rows, a.k, group);
}

// One row of a group: `size` activations, then zeros up to the padded size.
template <typename Dot>
void StageRow(const Activations& a, size_t start, size_t size, typename Dot::Act* out) {
  using Act = typename Dot::Act;
  if (sizeof(Act) == 2 && a.q_type == kInt8Type) {
    const int8_t* q = static_cast<const int8_t*>(a.q) + start;
    for (size_t i = 0; i < size; ++i) out[i] = static_cast<Act>(q[i]);
  } else {
    std::memcpy(out, static_cast<const Act*>(a.q) + start, size * sizeof(Act));
  }
  for (size_t i = size; i < RoundUp(size, Dot::kStep); ++i) out[i] = 0;
}

// The sum of a staged row's group; `largest` becomes the largest magnitude so far.
inline int32_t SumPlainly(const int8_t* q, size_t size, int32_t* largest) {
  int32_t sum = 0;
  int32_t most = *largest;
  for (size_t i = 0; i < size; ++i) {
    const int32_t magnitude = q[i] < 0 ? -q[i] : q[i];
    most = magnitude > most ? magnitude : most;
    sum += q[i];
  }
  *largest = most;
  return sum;
}

template <typename Dot, typename = void>
constexpr bool kHasSumRow = false;
template <typename Dot>
constexpr bool kHasSumRow<Dot, std::enable_if_t<Dot::kSumsRows>> = true;

template <typename Dot>
int32_t SumRow(const int8_t* q, size_t size, int32_t* largest) {
  if constexpr (kHasSumRow<Dot>) {
    return Dot::SumRow(q, size, largest);
  } else {
    return SumPlainly(q, size, largest);
  }
}

template <typename Dot, typename = void>
constexpr bool kShifts = false;
template <typename Dot>
constexpr bool kShifts<Dot, std::enable_if_t<Dot::kShiftsRows>> = true;

template <typename Dot>
int32_t Stage(const Activations& a, void* staged) {
  using Act = typename Dot::Act;
  uint8_t* to = static_cast<uint8_t*>(staged);
  int32_t largest = 0;
  const size_t group = StagedGroup<Dot>(a.rows, a.group_size, a.multiplier_group);
  for (size_t begin = 0; begin < a.k; begin += group) {
    const size_t size = a.k - begin < group ? a.k - begin : group;
    const size_t padded = RoundUp(size, Dot::kStep);
    int32_t* sums = reinterpret_cast<int32_t*>(to);
    Act* rows = reinterpret_cast<Act*>(Dot::kSums ? to + a.rows * sizeof(int32_t) : to);
    for (size_t r = 0; r < a.rows; ++r) {
      StageRow<Dot>(a, r * a.k + begin, size, rows + r * padded);
      if constexpr (Dot::kSums) sums[r] = SumRow<Dot>(rows + r * padded, padded, &largest);
    }
    to += StagedGroupBytes<Dot>(a.rows, size);
  }
  if constexpr (kShifts<Dot>) {
    to = static_cast<uint8_t*>(staged);
    for (size_t begin = 0; begin < a.k && a.multiplier_group != 0 && a.rows > 1; begin += group) {
      const size_t size = a.k - begin < group ? a.k - begin : group;
      Act* rows = reinterpret_cast<Act*>(to + a.rows * sizeof(int32_t));
      Dot::ShiftRow(rows, a.rows * RoundUp(size, Dot::kStep), largest);
      to += StagedGroupBytes<Dot>(a.rows, size);
    }
  }
  return largest;
}

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_STAGE_ROWS_INL_H_
