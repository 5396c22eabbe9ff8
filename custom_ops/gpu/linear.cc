#include "gpu/linear.h"

#include <algorithm>
#include <cstring>

namespace fp4dit::gpu {
namespace {

constexpr size_t kAlignment = 256;
// Below this sums of integers are the last bits of a float.
constexpr double kShortSums = 4194304.0;  // 2^22

// Where an input is in its fragment.
struct FragmentPlace {
  size_t lane, byte;  // byte 0 to 3 of the first register, 4 to 7 of the second
};

FragmentPlace PlaceOf(size_t channel, size_t input, IntegerType act) {
  const size_t half = input / 16;
  const size_t i = input % 16;
  // Fragments of 16-bit integers have two inputs of the first eight, then two of the others.
  const size_t quad = act == kInt8Type ? i / 4 : i % 8 / 2;
  const size_t byte = act == kInt8Type ? i % 4 : i / 8 * 2 + i % 2;
  return {channel % 8 * 4 + quad, half * 4 + byte};
}

}  // namespace

// Whether tensor cores take them, and how they hold the weights.
bool LinearWeights::ChooseFragments(const WeightSource& source) {
  storage_ = kPlain;
  if (act_ == kFloatType || source.format->max_integer() > 127.0f) return false;
  storage_ = source.format->storage_bits == 4 ? kCodes : kBytes;
  if (source.multipliers == nullptr) return HasKernel(source);
  // A step has one multiplier, or weights become bytes.
  const size_t run = source.run();
  const bool whole_steps = run == source.k || run % kStep == 0;
  const bool one_a_step = source.group_size == source.k || source.group_size % kStep == 0;
  const bool has = act_ == kInt8Type && storage_ == kCodes && whole_steps && one_a_step;
  storage_ = has ? kMultiplied : kBytes;
  return HasKernel(source);
}

// Bytes are multiplied by int8 activations of one scale a row alone: what else there might be is
// rare.
bool LinearWeights::HasKernel(const WeightSource& source) {
  if (storage_ != kBytes || (act_ == kInt8Type && source.act_group >= source.k)) return true;
  storage_ = kPlain;
  return false;
}

PackResult LinearWeights::Pack(const WeightSource& source, IntegerType act) {
  act_ = act;
  LinearArguments& a = arguments_;
  a = {};
  if (source.k > INT32_MAX / 2) return PackResult::kTooLarge;
  const Format& format = *source.format;
  const size_t run = source.run();
  const size_t groups = source.multipliers != nullptr ? 1 : source.groups();
  const size_t n_padded = RoundUp(source.n, kTileN);
  const auto narrow = [](size_t value) { return static_cast<int32_t>(value); };
  a.n = static_cast<int64_t>(source.n);
  a.n_padded = static_cast<int64_t>(n_padded);
  a.k = narrow(source.k);
  a.run = narrow(run);
  a.scale_runs = narrow(Tiles(std::min(source.scale_group(), source.k), run));
  a.act_runs = narrow(Tiles(std::min(source.act_group, source.k), run));
  a.several = source.act_group < source.k ? 1 : 0;
  a.plain = source.multipliers != nullptr ? 1 : 0;
  a.scale_is_half = source.scales_are_half ? 1 : 0;
  const bool fragments = ChooseFragments(source);
  size_t sizes[kParts] = {};
  sizes[kScalesPart] = groups * n_padded * (source.scales_are_half ? 2 : 4);
  sizes[kBiasPart] = source.n * sizeof(float);
  if (fragments) {
    a.run_steps = narrow(Tiles(run, kStep));
    const size_t last = source.k - (Tiles(source.k, run) - 1) * run;
    a.steps = narrow((Tiles(source.k, run) - 1) * Tiles(run, kStep) + Tiles(last, kStep));
    const size_t step_bytes = storage_ == kBytes ? kStep : kStep / 2;  // of a channel
    sizes[kCodesPart] = Stages() * kStageSteps * n_padded * step_bytes;
    if (storage_ == kMultiplied) sizes[kMultipliersPart] = source.groups() * n_padded;
    a.multiplier_steps = narrow(Tiles(source.group_size, kStep));
    const double most = storage_ == kBytes        ? 127.0
                        : storage_ == kMultiplied ? 127.0
                                                  : format.max_integer();
    a.short_sums = 128.0 * most * static_cast<double>(run) < kShortSums ? 1 : 0;
  } else {
    a.row_bytes = narrow(source.row_bytes());
    a.wide = narrow(std::min(source.wide, source.k));
    a.code_bits = format.storage_bits;
    a.minus_one = narrow(format.code_count() / 2 + 1);
    a.multiplier_group = narrow(source.group_size);
    a.multiplier_bytes = narrow(Tiles(source.groups(), 2));
    sizes[kCodesPart] = source.n * source.row_bytes();
    if (source.multipliers != nullptr) {
      sizes[kMultipliersPart] = source.n * Tiles(source.groups(), 2);
    }
    sizes[kGridPart] = 256 * sizeof(float);
  }
  for (size_t p = 0; p < kParts; ++p) offsets_[p + 1] = offsets_[p] + RoundUp(sizes[p], kAlignment);
  size_ = offsets_[kParts];
  if (!bytes_.Allocate(size_)) return PackResult::kNoMemory;
  std::memset(bytes_.data(), 0, size_);
  PackScales(source);
  if (fragments) {
    PackFragments(source);
    if (storage_ == kMultiplied) PackFragmentMultipliers(source);
    return PackResult::kDone;
  }
  if (sizes[kCodesPart] != 0) std::memcpy(At(kCodesPart), source.codes, sizes[kCodesPart]);
  if (sizes[kMultipliersPart] != 0) {
    std::memcpy(At(kMultipliersPart), source.multipliers, sizes[kMultipliersPart]);
  }
  auto* const grid = reinterpret_cast<float*>(At(kGridPart));
  for (size_t c = 0; c < format.code_count(); ++c) grid[c] = format.GridInteger(c);
  return PackResult::kDone;
}

void LinearWeights::PackFragments(const WeightSource& source) {
  const size_t n_padded = static_cast<size_t>(arguments_.n_padded);
  const size_t run = source.run();
  const size_t run_steps = static_cast<size_t>(arguments_.run_steps);
  const bool bytes = storage_ == kBytes;
  for (size_t row = 0; row < source.n; ++row) {
    for (size_t k = 0; k < source.k; ++k) {
      const size_t step = k / run * run_steps + k % run / kStep;
      const FragmentPlace place = PlaceOf(row, k % run % kStep, act_);
      const uint8_t code = source.Code(row, k);
      auto value = static_cast<int>(source.format->GridInteger(code));
      if (source.multipliers != nullptr) value *= source.Multiplier(row, k / source.group_size);
      if (value == 0) continue;  // no zero has a sign, see Decode
      const size_t tile = step / kStageSteps * (n_padded / 8) + row / 8;
      const size_t in_stage = step % kStageSteps;
      if (bytes) {
        const size_t word4 = (tile * 2 + in_stage / 2) * 32 + place.lane;
        At(kCodesPart)[word4 * 16 + in_stage % 2 * 8 + place.byte] = static_cast<uint8_t>(value);
      } else {
        uint8_t& pair =
            At(kCodesPart)[(tile * 32 + place.lane) * 16 + in_stage * 4 + place.byte / 2];
        pair = static_cast<uint8_t>(pair | code << (place.byte % 2 * 4));
      }
    }
  }
  uint8_t magnitudes[8];
  for (size_t c = 0; c < 8; ++c) {
    magnitudes[c] = bytes ? 0 : static_cast<uint8_t>(source.format->GridInteger(c));
  }
  const auto word = [&](size_t first) {
    uint32_t r = 0;
    for (size_t i = 0; i < 4; ++i) r |= uint32_t{magnitudes[first + i]} << (8 * i);
    return r;
  };
  arguments_.low = word(0);
  arguments_.high = word(4);
}

void LinearWeights::PackFragmentMultipliers(const WeightSource& source) {
  for (size_t row = 0; row < source.n; ++row) {
    for (size_t g = 0; g < source.groups(); ++g) {
      At(kMultipliersPart)[g * static_cast<size_t>(arguments_.n_padded) + row] =
          static_cast<uint8_t>(source.Multiplier(row, g));
    }
  }
}

void LinearWeights::PackScales(const WeightSource& source) {
  const size_t groups = source.multipliers != nullptr ? 1 : source.groups();
  const size_t element = source.scales_are_half ? 2 : 4;
  const auto* const scales = static_cast<const uint8_t*>(source.scales);
  for (size_t row = 0; row < source.n; ++row) {
    for (size_t g = 0; g < groups; ++g) {
      const size_t to = g * static_cast<size_t>(arguments_.n_padded) + row;
      std::memcpy(At(kScalesPart) + to * element, scales + (row * groups + g) * element, element);
    }
  }
  if (source.n != 0) std::memcpy(At(kBiasPart), source.bias, source.n * sizeof(float));
}

}  // namespace fp4dit::gpu
