// Standard normal noise of a seed, with the bits that numpy gives:
//
//   numpy.random.Generator(numpy.random.PCG64(seed)).standard_normal(count, numpy.float32)
//
// Three published algorithms: the seed is spread over 256 bits (SeedSequence), these start a
// permuted congruential generator (PCG64, XSL RR 128/64; O'Neill 2014), and its numbers choose
// points below the normal curve by the ziggurat method (Marsaglia and Tsang 2000).

#ifndef FP4DIT_EXAMPLES_NOISE_H_
#define FP4DIT_EXAMPLES_NOISE_H_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace example {

// Spreads whole numbers over as many words as a generator needs.
class SeedSequence {
 public:
  explicit SeedSequence(const std::vector<uint64_t>& seeds) {
    std::vector<uint32_t> words;
    for (const uint64_t seed : seeds) {
      words.push_back(static_cast<uint32_t>(seed));
      if (seed >> 32 != 0) words.push_back(static_cast<uint32_t>(seed >> 32));
    }
    words.resize(std::max(words.size(), pool_.size()), 0);
    uint32_t constant = 0x43b0d7e5;
    const auto hash = [&constant](uint32_t value) { return Hash(value, &constant, 0x931e8875); };
    for (size_t i = 0; i < pool_.size(); ++i) pool_[i] = hash(words[i]);
    for (size_t source = 0; source < pool_.size(); ++source) {
      for (size_t target = 0; target < pool_.size(); ++target) {
        if (source != target) pool_[target] = Mix(pool_[target], hash(pool_[source]));
      }
    }
    for (size_t source = pool_.size(); source < words.size(); ++source) {
      for (uint32_t& target : pool_) target = Mix(target, hash(words[source]));
    }
  }

  // The generator's start: four words of 64 bits.
  std::array<uint64_t, 4> State() const {
    uint32_t constant = 0x8b51f9dd;
    std::array<uint64_t, 4> state{};
    for (size_t i = 0; i < 8; ++i) {
      const uint64_t word = Hash(pool_[i % pool_.size()], &constant, 0x58f38ded);
      state[i / 2] |= word << (32 * (i % 2));
    }
    return state;
  }

 private:
  static uint32_t Hash(uint32_t value, uint32_t* constant, uint32_t factor) {
    value ^= *constant;
    *constant *= factor;
    value *= *constant;
    return value ^ (value >> 16);
  }
  static uint32_t Mix(uint32_t left, uint32_t right) {
    const uint32_t mixed = 0xca01f9ddu * left - 0x4973f715u * right;
    return mixed ^ (mixed >> 16);
  }

  std::array<uint32_t, 4> pool_{};
};

class Pcg64 {
 public:
  explicit Pcg64(const SeedSequence& seeds) {
    const std::array<uint64_t, 4> start = seeds.State();
    increment_ = (Word128{start[2]} << 64 | start[3]) << 1 | 1;
    Step();
    state_ += Word128{start[0]} << 64 | start[1];
    Step();
  }

  // Uniform over all words; a number of 64 bits gives two, the low one first.
  uint32_t Next32() {
    if (has_high_) {
      has_high_ = false;
      return high_;
    }
    Step();
    const uint64_t folded = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
    const unsigned turn = static_cast<unsigned>(state_ >> 122);
    const uint64_t word = folded >> turn | folded << ((64 - turn) % 64);
    high_ = static_cast<uint32_t>(word >> 32);
    has_high_ = true;
    return static_cast<uint32_t>(word);
  }

  // Uniform in [0, 1).
  float NextUniform() { return static_cast<float>(Next32() >> 8) * 0x1p-24f; }

 private:
  __extension__ typedef unsigned __int128 Word128;
  void Step() {
    constexpr Word128 kFactor = Word128{0x2360ed051fc65da4} << 64 | 0x4385df649fccf645;
    state_ = state_ * kFactor + increment_;
  }

  Word128 state_ = 0, increment_ = 0;
  bool has_high_ = false;
  uint32_t high_ = 0;
};

// The normal curve f(x) = exp(-x^2 / 2), covered by 256 strips of equal area: 255 rectangles that
// reach from 0 to edge[i], the lowest one continued by the tail beyond kTail.
class Ziggurat {
 public:
  Ziggurat() {
    double edge = kTail, height = std::exp(-0.5 * kTail * kTail);
    const double width = kArea / height;  // of the lowest strip, had it no tail
    Set(0, width, kTail / width, 1);
    for (size_t i = kStrips - 1; i > 0; --i) {
      const double lower_edge = edge, lower_height = height;
      // The strip above has the same area; the topmost one is a cap without an inside.
      edge = i > 1 ? std::sqrt(-2 * std::log(kArea / lower_edge + lower_height)) : 0;
      height = std::exp(-0.5 * edge * edge);
      Set(i, lower_edge, edge / lower_edge, lower_height);
    }
  }

  float Draw(Pcg64* random) const {
    for (;;) {
      const uint32_t bits = random->Next32();
      const size_t i = bits & 0xff;
      const uint32_t mantissa = bits >> 9;
      const bool negative = (bits >> 8 & 1) != 0;
      const float size = static_cast<float>(mantissa) * step_[i];
      const float x = negative ? -size : size;
      if (mantissa < inside_[i]) return x;
      if (i == 0) return Tail((mantissa >> 8 & 1) != 0, random);
      const float y = (height_[i - 1] - height_[i]) * random->NextUniform() + height_[i];
      if (static_cast<double>(y) < std::exp(-0.5 * x * x)) return x;
    }
  }

 private:
  static constexpr size_t kStrips = 256;
  static constexpr double kTail = 3.6541528853610088;  // x where the tail begins
  static constexpr double kArea = 0.00492867323399;    // of each strip, the tail's included
  static constexpr double kSteps = 8388608;            // 2^23 points along a strip

  void Set(size_t strip, double width, double inside, double height) {
    step_[strip] = static_cast<float>(width / kSteps);
    inside_[strip] = static_cast<uint32_t>(std::lround(inside * kSteps));
    height_[strip] = static_cast<float>(height);
  }

  static float Tail(bool negative, Pcg64* random) {
    constexpr float kStart = static_cast<float>(kTail), kInverse = static_cast<float>(1 / kTail);
    for (;;) {
      const float x = -kInverse * std::log1p(-random->NextUniform());
      const float y = -std::log1p(-random->NextUniform());
      if (y + y > x * x) return negative ? -(kStart + x) : kStart + x;
    }
  }

  std::array<float, kStrips> step_{}, height_{};
  std::array<uint32_t, kStrips> inside_{};
};

// `count` numbers of the seeds: {seed} for the first latents, {seed, i + 1} for the noise that a
// stochastic scheduler adds after step i.
inline std::vector<float> StandardNormal(const std::vector<uint64_t>& seeds, size_t count) {
  static const Ziggurat ziggurat;
  Pcg64 random{SeedSequence(seeds)};
  std::vector<float> values(count);
  for (float& value : values) value = ziggurat.Draw(&random);
  return values;
}

}  // namespace example

#endif  // FP4DIT_EXAMPLES_NOISE_H_
