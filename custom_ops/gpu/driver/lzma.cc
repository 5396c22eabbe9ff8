#include "gpu/driver/lzma.h"

#include <algorithm>

namespace fp4dit::gpu {
namespace {

using Probability = uint16_t;  // that a bit is 0, in units of 2^-11

// Bits from a stream, each under a probability that follows what was seen.
class RangeDecoder {
 public:
  RangeDecoder(const uint8_t* from, size_t size) : from_(from), end_(from + size) {
    const bool first = Next() == 0;  // as every encoder writes it
    for (int i = 0; i < 4; ++i) code_ = code_ << 8 | Next();
    ended_ = ended_ || !first;
  }

  // Whether the stream held all that was asked for so far.
  bool ok() const { return !ended_; }

  uint32_t Bit(Probability* zero) {
    Fill();
    const uint32_t bound = (range_ >> 11) * *zero;
    if (code_ < bound) {
      range_ = bound;
      *zero = static_cast<Probability>(*zero + ((2048 - *zero) >> 5));
      return 0;
    }
    range_ -= bound;
    code_ -= bound;
    *zero = static_cast<Probability>(*zero - (*zero >> 5));
    return 1;
  }

  // `count` bits under no probability, the highest first.
  uint32_t Direct(uint32_t count) {
    uint32_t value = 0;
    for (; count > 0; --count) {
      Fill();
      range_ >>= 1;
      const uint32_t bit = code_ >= range_ ? 1 : 0;
      if (bit != 0) code_ -= range_;
      value = value << 1 | bit;
    }
    return value;
  }

  // `count` bits, each under a probability of those before it: a tree with its root at 1.
  uint32_t Tree(Probability* nodes, uint32_t count) {
    uint32_t node = 1;
    for (uint32_t i = 0; i < count; ++i) node = node << 1 | Bit(nodes + node);
    return node - (1u << count);
  }

  // The same, the lowest bit first.
  uint32_t ReverseTree(Probability* nodes, uint32_t count) {
    uint32_t node = 1, value = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t bit = Bit(nodes + node);
      node = node << 1 | bit;
      value |= bit << i;
    }
    return value;
  }

 private:
  uint32_t Next() {
    if (from_ == end_) {
      ended_ = true;
      return 0;
    }
    return *from_++;
  }

  void Fill() {
    if (range_ < 1u << 24) {
      range_ <<= 8;
      code_ = code_ << 8 | Next();
    }
  }

  const uint8_t *from_, *end_;
  uint32_t range_ = 0xFFFFFFFF, code_ = 0;
  bool ended_ = false;
};

constexpr uint32_t kStates = 12, kAfterMatch = 7;  // from the latter on a repetition came last
constexpr uint32_t kPlaces = 4;                    // a byte's index, by its lowest bits
// The highest bits of the byte before.
constexpr uint32_t kContexts = 8, kContextShift = 5;
constexpr uint32_t kShortest = 2, kSlotsOfTrees = 14, kAlignBits = 4;

// Lengths of repetitions, less the shortest.
struct Lengths {
  Probability beyond_low, beyond_mid, low[kPlaces][8], mid[kPlaces][8], high[256];

  uint32_t Read(RangeDecoder* bits, uint32_t place) {
    if (bits->Bit(&beyond_low) == 0) return bits->Tree(low[place], 3);
    if (bits->Bit(&beyond_mid) == 0) return 8 + bits->Tree(mid[place], 3);
    return 16 + bits->Tree(high, 8);
  }
};

// Every probability; all are a half at first.
struct Model {
  Probability is_match[kStates][kPlaces], is_earlier[kStates], is_second[kStates];
  Probability is_third[kStates], is_fourth[kStates], is_longer[kStates][kPlaces];
  Probability slot[4][64], trees[115], align[1 << kAlignBits], literal[kContexts][0x300];
  Lengths fresh, earlier;
};

class Decoder {
 public:
  Decoder(const uint8_t* from, size_t size, uint8_t* to, size_t room)
      : bits_(from, size), to_(to), room_(room) {
    auto* const all = reinterpret_cast<Probability*>(&model_);
    std::fill(all, all + sizeof(model_) / sizeof(Probability), Probability{1024});
  }

  bool Run() {
    while (made_ < room_) {
      const uint32_t place = made_ & (kPlaces - 1);
      if (bits_.Bit(&model_.is_match[state_][place]) == 0) {
        Literal();
      } else if (const uint32_t length = Match(place); !Repeat(length)) {
        return false;
      }
      if (!bits_.ok()) return false;
    }
    return true;
  }

 private:
  // A byte, by the one before it; after a repetition also by that which would have gone on with it.
  void Literal() {
    const uint32_t last = made_ == 0 ? 0 : to_[made_ - 1];
    Probability* const nodes = model_.literal[last >> kContextShift];
    uint32_t node = 1;
    if (state_ >= kAfterMatch) {
      uint32_t expected = to_[made_ - distance_[0] - 1];
      for (bool same = true; same && node < 0x100;) {
        const uint32_t wanted = expected >> 7 & 1;
        expected <<= 1;
        const uint32_t bit = bits_.Bit(nodes + ((1 + wanted) << 8) + node);
        node = node << 1 | bit;
        same = bit == wanted;
      }
    }
    while (node < 0x100) node = node << 1 | bits_.Bit(nodes + node);
    to_[made_++] = static_cast<uint8_t>(node);
    state_ = state_ < 4 ? 0 : state_ < 10 ? state_ - 3 : state_ - 6;
  }

  // The length of a repetition; its distance, less one, becomes the first of the last four.
  uint32_t Match(uint32_t place) {
    const bool after_literal = state_ < kAfterMatch;
    if (bits_.Bit(&model_.is_earlier[state_]) == 0) {
      std::copy_backward(distance_, distance_ + 3, distance_ + 4);
      const uint32_t length = model_.fresh.Read(&bits_, place);
      distance_[0] = Distance(length);
      state_ = after_literal ? 7 : 10;
      return length + kShortest;
    }
    if (bits_.Bit(&model_.is_second[state_]) == 0) {
      if (bits_.Bit(&model_.is_longer[state_][place]) == 0) {
        state_ = after_literal ? 9 : 11;
        return 1;
      }
    } else {
      int which = 1;
      if (bits_.Bit(&model_.is_third[state_]) != 0) {
        which = bits_.Bit(&model_.is_fourth[state_]) == 0 ? 2 : 3;
      }
      std::rotate(distance_, distance_ + which, distance_ + which + 1);
    }
    const uint32_t length = model_.earlier.Read(&bits_, place);
    state_ = after_literal ? 8 : 11;
    return length + kShortest;
  }

  // A new distance, less one, by the length less the shortest.
  uint32_t Distance(uint32_t length) {
    const uint32_t slot = bits_.Tree(model_.slot[std::min(length, 3u)], 6);
    if (slot < 4) return slot;
    const uint32_t count = (slot >> 1) - 1;
    const uint32_t high = (2 | (slot & 1)) << count;
    if (slot < kSlotsOfTrees) return high + bits_.ReverseTree(model_.trees + high - slot, count);
    const uint32_t middle = bits_.Direct(count - kAlignBits) << kAlignBits;
    return high + middle + bits_.ReverseTree(model_.align, kAlignBits);
  }

  // Copies what was made before; false where there is none, or no room.
  bool Repeat(uint32_t length) {
    if (!bits_.ok() || distance_[0] >= made_ || length > room_ - made_) return false;
    for (; length > 0; --length, ++made_) to_[made_] = to_[made_ - distance_[0] - 1];
    return true;
  }

  RangeDecoder bits_;
  Model model_;
  uint8_t* const to_;
  const size_t room_;
  size_t made_ = 0;
  uint32_t state_ = 0, distance_[4] = {};
};

}  // namespace

bool Decompress(const uint8_t* from, size_t size, uint8_t* to, size_t room) {
  return Decoder(from, size, to, room).Run();
}

}  // namespace fp4dit::gpu
