// What decodes the weights of broadcast_dot-inl.h. Included by files of kernels only; see
// linear_tile-inl.h on the anonymous namespace. `V` is as there.

#ifndef FP4DIT_CPU_KERNELS_DECODE_PANEL_INL_H_
#define FP4DIT_CPU_KERNELS_DECODE_PANEL_INL_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/kernels.h"

namespace fp4dit {
namespace {

constexpr size_t kWordBytes = 4;

// Entries of the low and of the high nibbles of bytes.
template <typename V>
typename V::Int LowCodes(typename V::Int table, typename V::Int codes) {
  return V::Lookup(table, V::And(codes, V::Bytes(15)));
}
template <typename V>
typename V::Int HighCodes(typename V::Int table, typename V::Int codes) {
  const auto high = V::ShiftRight4(codes);
  return V::kShiftsBytes ? V::Lookup(table, high) : LowCodes<V>(table, high);
}

// Decoding int8, from 4-bit codes or bytes; a block has kBlock elements. `flip` is xored to what is
// stored as bytes.
template <typename V, size_t kBlock>
size_t DecodeToBytes(const LinearTile& tile, const uint8_t* packed, size_t blocks,
                     typename V::Int table, uint8_t flip, int8_t* out) {
  constexpr size_t kVector = V::kLanes * kWordBytes;
  if (tile.storage == kBytes) {
    const auto flips = V::Bytes(flip);
    for (size_t i = 0; i < kBlock * blocks; i += kVector) {
      V::Store(out + i, V::Xor(V::Load(packed + i), flips));
    }
    return kBlock * blocks;
  }
  for (size_t b = 0; b < blocks; ++b, packed += kBlock / 2, out += kBlock) {
    for (size_t i = 0; i < kBlock / 2; i += kVector) {
      const auto codes = V::Load(packed + i);
      V::Store(out + i, LowCodes<V>(table, codes));
      V::Store(out + kBlock / 2 + i, HighCodes<V>(table, codes));
    }
  }
  return kBlock / 2 * blocks;
}

// Decoding int16 or float, of any storage. `To` is the type's
//   Bytes, kCount                    vector in which codes are looked up; elements at a time
//   Load(packed)                     kCount bytes
//   Store(out, bytes)                kCount elements from them
//   StoreWide(out, packed, storage)  kCount elements from shorts or bfloats
template <typename To, size_t kBlock, typename Operand>
size_t DecodeWide(const LinearTile& tile, const uint8_t* packed, size_t blocks, Operand* out) {
  using Bytes = typename To::Bytes;
  const size_t bytes = tile.storage == kNibbles ? kBlock / 2
                       : tile.storage == kBytes ? kBlock
                                                : 2 * kBlock;
  const auto table = Bytes::Table(tile.table);
  for (size_t b = 0; b < blocks; ++b, packed += bytes, out += kBlock) {
    if (tile.storage == kNibbles) {
      for (size_t i = 0; i < kBlock / 2; i += To::kCount) {
        const auto codes = To::Load(packed + i);
        To::Store(out + i, LowCodes<Bytes>(table, codes));
        To::Store(out + kBlock / 2 + i, HighCodes<Bytes>(table, codes));
      }
      continue;
    }
    for (size_t i = 0; i < kBlock; i += To::kCount) {
      if (tile.storage == kBytes) {
        To::Store(out + i, To::Load(packed + i));
      } else {
        To::StoreWide(out + i, packed + 2 * i, tile.storage);
      }
    }
  }
  return blocks * bytes;
}

// Decoding int8 that are grid integers times multipliers, from 4-bit codes; see DecodeToBytes. Made
// unsigned first, by adding the largest, a grid integer times a multiplier fits its byte, and words
// of two bytes can be multiplied.
template <typename V, size_t kUnit, size_t kPanel>
size_t DecodeMultiplied(const LinearTile& tile, const uint8_t* packed, size_t k, size_t blocks,
                        uint8_t flip, int8_t* out) {
  constexpr size_t kVector = V::kLanes * kWordBytes;
  constexpr size_t kHalf = kUnit * kPanel / 2;
  const auto offset = V::Bytes(static_cast<uint8_t>(tile.max_weight));
  const auto table = V::AddBytes(V::Table(tile.table), offset);
  for (size_t left = blocks; left > 0;) {
    const size_t rest = (tile.multiplier_group - k % tile.multiplier_group) / kUnit;
    const size_t count = left < rest ? left : rest;
    alignas(64) uint8_t spread[2 * kHalf];
    const uint8_t* const multipliers = tile.multipliers + k / tile.multiplier_group * kPanel;
    static_assert(kUnit <= sizeof(uint64_t), "see repeated");
    for (size_t n = 0; n < kPanel; ++n) {
      const uint64_t repeated = multipliers[n] * 0x0101010101010101u;
      std::memcpy(spread + n * kUnit, &repeated, kUnit);
    }
    for (size_t i = 0; i < kHalf; i += kVector) {
      const auto low = V::Factors(V::Load(spread + i));
      const auto high = V::Factors(V::Load(spread + kHalf + i));
      const auto low_start = V::SubBytes(V::Bytes(flip), V::MulBytes(offset, low));
      const auto high_start = V::SubBytes(V::Bytes(flip), V::MulBytes(offset, high));
      for (size_t b = 0; b < count; ++b) {
        const auto codes = V::Load(packed + b * kHalf + i);
        const auto first = V::MulBytes(LowCodes<V>(table, codes), low);
        const auto second = V::MulBytes(HighCodes<V>(table, codes), high);
        V::Store(out + 2 * b * kHalf + i, V::AddBytes(first, low_start));
        V::Store(out + (2 * b + 1) * kHalf + i, V::AddBytes(second, high_start));
      }
    }
    left -= count;
    k += count * kUnit;
    packed += count * kHalf;
    out += 2 * count * kHalf;
  }
  return blocks * kHalf;
}

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_DECODE_PANEL_INL_H_
