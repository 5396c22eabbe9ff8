// FpLinear, FpLinearInteger and FpLinearSigns where weights are int8 and activations int8 or int16:
// tensor cores. numerics.linear and linear_integer are the definitions.
//
// A block of 8 warps makes a tile of y. Four steps of 32 inputs are staged at a time, three stages
// ahead; a run of inputs is summed exactly, then folded into float sums under its scales. Weights
// come from global memory as fragments of the mma, eight codes a word, and are decoded in
// registers.

#include "gpu/arguments.h"
#include "gpu/device.h"
#include "gpu/kernels/decode.h"
#include "gpu/kernels/linear_sums.h"

namespace linear {

// 16-byte piece `piece` of a row of a stage: eight rows' like pieces are in different banks.
template <typename C>
DEVICE uint8_t* Piece(uint8_t* stage, int row, int piece) {
  return stage + row * C::kRowBytes + ((piece ^ (row & 7)) << 4);
}

// Where a step of padded inputs comes from.
struct Source {
  int32_t first, end;  // inputs: those from `end` on are zeros
};

DEVICE Source SourceOf(const LinearArguments& a, int step) {
  if (step >= a.steps) return {0, 0};
  if (a.steps == a.run_steps) return {step * kStep, a.k};  // divisions are slow
  const int run = step / a.run_steps * a.run;
  const int end = a.k - run < a.run ? a.k : run + a.run;
  return {run + step % a.run_steps * kStep, end};
}

// Starts to copy stage `index` of the block's rows; stages from `end` on are empty.
template <typename C>
DEVICE void Stage(const LinearArguments& a, int64_t first_row, int index, int end) {
  using Act = typename C::Act;
  constexpr int kPieceInputs = 16 / C::kPlanes;
  constexpr int kStepPieces = kStep / kPieceInputs;
  if (index < end) {
    uint8_t* const to = Shared() + index % kStages * C::kStageBytes;
    const int piece = Thread() % C::kRowPieces;  // the same in all rounds
    const Source source = SourceOf(a, index * kStageSteps + piece / kStepPieces);
    const int column = source.first + piece % kStepPieces * kPieceInputs;
    const int left = source.end - column;
    const int count = left < 0 ? 0 : left < kPieceInputs ? left : kPieceInputs;
    const int64_t rows_left = a.m - first_row;
    const int rows = count == 0 ? 0 : rows_left < C::kRows ? static_cast<int>(rows_left) : C::kRows;
    constexpr int kRound = kThreads / C::kRowPieces;
    static_assert(kRound % 8 == 0);  // pieces of all rounds are in the same banks
    int row = Thread() / C::kRowPieces;
    const Act* from = static_cast<const Act*>(a.q) + (first_row + row) * a.k + column;
    uint8_t* at = Piece<C>(to, row, piece);
    const int64_t next = int64_t{kRound} * a.k;
    if (a.aligned != 0) {
      UNROLL for (; row < C::kRows; row += kRound, from += next, at += kRound * C::kRowBytes) {
        CopyAsync<16>(at, row < rows ? from : a.q, row < rows);
      }
    } else {
      ROLLED for (; row < C::kRows; row += kRound, from += next, at += kRound * C::kRowBytes) {
        ROLLED for (int i = 0; i < kPieceInputs; ++i) {
          reinterpret_cast<Act*>(at)[i] = row < rows && i < count ? from[i] : Act{0};
        }
      }
    }
  }
  CommitCopies();
}

// Fragments of activations of a step: of int16 first the low bytes, then the high ones. Those take
// inputs in the order that 16-bit fragments have them, and so do their weights.
template <typename C>
DEVICE void LoadActivations(uint8_t* stage, int row, int step, uint32_t (&a)[C::kPlanes][4]) {
  const int lane = Thread() % 32;
  if constexpr (C::kPlanes == 1) {
    LoadMatrices(Piece<C>(stage, row + lane % 16, step * 2 + lane / 16), a[0]);
  } else {
    UNROLL for (int half = 0; half < 2; ++half) {
      uint32_t wide[4];
      LoadMatrices(Piece<C>(stage, row + lane % 16, step * 4 + half * 2 + lane / 16), wide);
      UNROLL for (int i = 0; i < 2; ++i) {
        a[0][half * 2 + i] = Permute(wide[i], wide[i + 2], 0x6420);
        a[1][half * 2 + i] = Permute(wide[i], wide[i + 2], 0x7531);
      }
    }
  }
}

// The weights of a warp's columns: a stage's words, and the tables that decode them.
template <typename C>
struct Weights {
  const Word4* at;
  int64_t stage_words;
  Word4 words[C::kTilesN][C::kWords], next[C::kTilesN][C::kWords];
  Table table[C::kStorage == kMultiplied ? C::kTilesN : 1];
  int multiplier_left = 0;
  const uint8_t* multipliers;  // of the next group

  DEVICE Weights(const LinearArguments& a, const Place<C>& place, int first_stage) {
    const int64_t tile = place.first_column / 8;
    stage_words = a.n_padded / 8 * C::kWords * 32;
    at = reinterpret_cast<const Word4*>(a.codes) + tile * C::kWords * 32 + place.lane +
         first_stage * stage_words;
    table[0] = {a.low, a.high};
    if constexpr (C::kStorage == kMultiplied) {
      multipliers = a.multipliers + place.first_column;
      if constexpr (C::kShared) {  // it may begin within a group
        const int step = first_stage * kStageSteps;
        multipliers += step / a.multiplier_steps * a.n_padded;
        NextStep(a, place.lane);
        multiplier_left += 1 - step % a.multiplier_steps;
      }
    }
    Load();
  }
  // The next stage, which `Take` makes the present one.
  DEVICE void Load() {
    UNROLL for (int j = 0; j < C::kTilesN; ++j) {
      UNROLL for (int w = 0; w < C::kWords; ++w) next[j][w] = at[(j * C::kWords + w) * 32];
    }
    at += stage_words;
  }
  DEVICE void Take() {
    UNROLL for (int j = 0; j < C::kTilesN; ++j) {
      UNROLL for (int w = 0; w < C::kWords; ++w) words[j][w] = next[j][w];
    }
  }
  DEVICE void NextStep(const LinearArguments& a, int lane) {
    if constexpr (C::kStorage == kMultiplied) {
      if (--multiplier_left > 0) return;
      multiplier_left = a.multiplier_steps;
      UNROLL for (int j = 0; j < C::kTilesN; ++j) {
        const uint32_t multiplier = multipliers[j * 8 + lane / 4];
        table[j] = {a.low * multiplier, a.high * multiplier};  // each byte is at most 127
      }
      multipliers += a.n_padded;
    }
  }
  DEVICE void Fragment(int j, int step, uint32_t (&b)[2]) const {
    // Not indexed: registers have no addresses.
    const auto of_step = [step](uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
      return step < 2 ? (step == 0 ? a : b) : (step == 2 ? c : d);
    };
    const uint32_t (&first)[4] = words[j][0].word;
    if constexpr (C::kStorage == kBytes) {
      const uint32_t (&second)[4] = words[j][1].word;
      b[0] = of_step(first[0], first[2], second[0], second[2]);
      b[1] = of_step(first[1], first[3], second[1], second[3]);
    } else {
      const uint32_t codes = of_step(first[0], first[1], first[2], first[3]);
      Decode(codes, table[C::kStorage == kMultiplied ? j : 0], b);
    }
  }
};

template <typename C>
DEVICE void MultiplyStep(uint8_t* stage, int first_row, int step, const Weights<C>& weights,
                         Sums<C>& sums) {
  uint32_t b[C::kTilesN][2];
  UNROLL for (int j = 0; j < C::kTilesN; ++j) weights.Fragment(j, step, b[j]);
  UNROLL for (int i = 0; i < C::kTilesM; ++i) {
    uint32_t a[C::kPlanes][4];
    LoadActivations<C>(stage, first_row + i * 16, step, a);
    UNROLL for (int j = 0; j < C::kTilesN; ++j) {
      if constexpr (C::kPlanes == 1) {
        Mma(sums.run[0][i][j], a[0], b[j]);
      } else {
        Mma<true>(sums.run[0][i][j], a[0], b[j]);
        Mma(sums.run[1][i][j], a[1], b[j]);
      }
    }
  }
}

template <typename C>
DEVICE void Run(const LinearArguments& a) {
  const int tiles_n = static_cast<int>(a.n_padded / kTileN);
  const int all_stages = (a.steps + kStageSteps - 1) / kStageSteps;
  int tile = static_cast<int>(Block());  // divisions of 64 bits are long
  int first_stage = 0;
  int stages = all_stages;  // where the block's end
  if constexpr (C::kShared) {
    const int parts = (all_stages + a.part_stages - 1) / a.part_stages;
    first_stage = tile % parts * a.part_stages;
    tile /= parts;
    if (stages - first_stage > a.part_stages) stages = first_stage + a.part_stages;
  }
  const int64_t first_row = int64_t{tile / tiles_n} * C::kRows;
  const int warp = Thread() / 32;
  const int warp_row = warp / C::kWarpsN * C::kTilesM * 16;
  Place<C> place;
  place.lane = Thread() % 32;
  place.first_row = first_row + warp_row;
  place.first_column = int64_t{tile % tiles_n} * kTileN + warp % C::kWarpsN * C::kTilesN * 8;
  const int end = a.steps < stages * kStageSteps ? a.steps : stages * kStageSteps;  // step
  Weights<C> weights(a, place, first_stage);
  Sums<C> sums;
  StartSums(a, place, sums);
  StartRun(a, sums);
  typename RunsOf<C::kShared>::Type runs(a, first_stage);
  // Runs whose steps are whole stages end with one; others may end with any step.
  const bool whole = runs.step_left % kStageSteps == 0;
  ROLLED for (int s = first_stage + 1 - kStages; s < stages; ++s) {
    if (s >= first_stage) {
      WaitCopies<kStages - 2>();
      Sync();
    }
    Stage<C>(a, first_row, s + kStages - 1, stages);
    if (s < first_stage) continue;
    weights.Take();
    if (s + 1 < stages) weights.Load();
    uint8_t* const stage = Shared() + s % kStages * C::kStageBytes;
    const int steps = end - s * kStageSteps < kStageSteps ? end - s * kStageSteps : kStageSteps;
    ROLLED for (int step = 0; step < steps;) {
      int done = 1;
      if (whole && steps == kStageSteps) {
        UNROLL for (int i = 0; i < kStageSteps; ++i) {
          weights.NextStep(a, place.lane);
          MultiplyStep(stage, warp_row, i, weights, sums);
        }
        done = kStageSteps;
      } else {
        weights.NextStep(a, place.lane);
        MultiplyStep(stage, warp_row, step, weights, sums);
      }
      step += done;
      runs.step_left -= done;
      const bool last = s * kStageSteps + step == end;
      if (runs.step_left > 0 && !last) continue;
      EndRun(a, runs, last, place, sums);
      StartRun(a, sums);
      runs.Next(a);
    }
  }
  if constexpr (!C::kShared) StoreSums(a, place, sums);
}

}  // namespace linear

#define FP4DIT_LINEAR(name, act, storage, ...)                         \
  KERNEL(256) name(fp4dit::gpu::LinearArguments a) {                   \
    linear::Run<linear::Config<act, linear::storage, __VA_ARGS__>>(a); \
  }
FP4DIT_LINEAR(fp4dit_linear_int8_codes_128, int8_t, kCodes, false, 128)
FP4DIT_LINEAR(fp4dit_linear_int8_codes_16, int8_t, kCodes, false, 16)
FP4DIT_LINEAR(fp4dit_linear_int8_codes_several, int8_t, kCodes, true, 64)
FP4DIT_LINEAR(fp4dit_linear_int8_multiplied_128, int8_t, kMultiplied, false, 128)
FP4DIT_LINEAR(fp4dit_linear_int8_multiplied_16, int8_t, kMultiplied, false, 16)
FP4DIT_LINEAR(fp4dit_linear_int8_multiplied_several, int8_t, kMultiplied, true, 64)
FP4DIT_LINEAR(fp4dit_linear_int8_bytes_128, int8_t, kBytes, false, 128)
FP4DIT_LINEAR(fp4dit_linear_int8_bytes_16, int8_t, kBytes, false, 16)
FP4DIT_LINEAR(fp4dit_linear_int16_codes_64, int16_t, kCodes, false, 64)
FP4DIT_LINEAR(fp4dit_linear_int16_codes_several, int16_t, kCodes, true, 64)
FP4DIT_LINEAR(fp4dit_linear_int8_codes_shared, int8_t, kCodes, false, 16, true)
FP4DIT_LINEAR(fp4dit_linear_int8_multiplied_shared, int8_t, kMultiplied, false, 16, true)
FP4DIT_LINEAR(fp4dit_linear_int8_bytes_shared, int8_t, kBytes, false, 16, true)
FP4DIT_LINEAR(fp4dit_linear_int16_codes_shared, int16_t, kCodes, false, 16, true)
