// How a block of attention.cu gets queries, keys and values: copies to shared memory, ahead of
// their use.

#ifndef FP4DIT_GPU_KERNELS_ATTENTION_CHUNKS_H_
#define FP4DIT_GPU_KERNELS_ATTENTION_CHUNKS_H_

#include "gpu/arguments.h"
#include "gpu/device.h"

namespace attention {

using fp4dit::gpu::AttentionArguments;
using fp4dit::gpu::kKeyChunk;
using fp4dit::gpu::kKeyTile;

constexpr int kTiles = kKeyTile / 8;           // of eight keys
constexpr int kChunks = kKeyTile / kKeyChunk;  // of a tile of keys
constexpr int kChunkTiles = kKeyChunk / 8;

template <typename Integer_, int kChannels_, int kWarps_>
struct Config {
  using Integer = Integer_;
  static constexpr int kBytes = static_cast<int>(sizeof(Integer));
  static constexpr int kChannels = kChannels_;  // of a head that a block makes
  static constexpr int kWarps = kWarps_;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTilesD = kChannels / 8;
  static constexpr bool kWide = kBytes == 2;
};

// Where a block works, and its shared memory.
struct Place {
  int batch, head, first_row, first_channel;  // of the warp's rows
  uint8_t *queries, *chunks;
  float *key_scale, *key_bias, *value_scale;  // [kKeyTile]
  int lane;

  DEVICE int64_t Row(const AttentionArguments& a, int tokens, int token) const {
    return (int64_t{batch} * tokens + token) * a.heads + head;
  }
};

// Channels of the block.
template <typename C>
DEVICE int ChannelsOf(const AttentionArguments& a, const Place& place) {
  const int left = a.size - place.first_channel;
  return left < C::kChannels ? left : C::kChannels;
}

// Steps of 32 channels of q and k.
DEVICE int StepsOf(const AttentionArguments& a) { return (a.size + 31) / 32; }

// Copies 32 rows, of which there are `count`, in whole pieces of shared memory: beyond the `bytes`
// of a row there are zeros.
template <typename C>
DEVICE void CopyRows(const AttentionArguments& a, const uint8_t* from, int count, int bytes,
                     int pieces, int stride, uint8_t* to) {
  constexpr int kThreadsOfRow = C::kThreads / kKeyChunk;
  const int row = Thread() / kThreadsOfRow;
  const int first = Thread() % kThreadsOfRow;
  const bool live = row < count;
  if (live) from += int64_t{row} * a.heads * a.size * C::kBytes;
  to += row * stride * 16;
  if (a.copied_by_8 != 0) {
    ROLLED for (int i = first; i < pieces * 2; i += kThreadsOfRow) {
      const bool there = live && i * 8 < bytes;
      CopyAsync<8>(to + i * 8, there ? from + i * 8 : from, there);
    }
  } else {
    ROLLED for (int i = first; i < pieces * 16; i += kThreadsOfRow) {
      to[i] = live && i < bytes ? from[i] : uint8_t{0};
    }
  }
}

// Chunks of keys and values in the order in which they are needed: of each tile of keys first those
// of keys, then of values. `slot` is where the next one to be copied goes.
struct Chunks {
  int tile = 0, first = 0, slot = 0, read_slot = 0;
  bool values = false;
};

DEVICE uint8_t* ChunkAt(const AttentionArguments& a, const Place& place, int slot) {
  const int stride = a.key_stride > a.value_stride ? a.key_stride : a.value_stride;
  return place.chunks + slot * kKeyChunk * stride * 16;
}

DEVICE int NextSlot(const AttentionArguments& a, int slot) {
  return slot + 1 == a.stages ? 0 : slot + 1;
}

// Starts to copy the next chunk, if there is one.
template <typename C>
DEVICE void StageChunk(const AttentionArguments& a, const Place& place, Chunks& next) {
  if (next.tile < a.keys) {
    const int64_t row = place.Row(a, a.keys, next.first) * a.size;
    const int channels = next.values ? ChannelsOf<C>(a, place) : a.size;
    const uint8_t* const from =
        next.values ? static_cast<const uint8_t*>(a.v) + (row + place.first_channel) * C::kBytes
                    : static_cast<const uint8_t*>(a.k) + row * C::kBytes;
    const int bytes = channels * C::kBytes;
    CopyRows<C>(a, from, a.keys - next.first, bytes,
                next.values ? (bytes + 15) / 16 : StepsOf(a) * 2 * C::kBytes,
                next.values ? a.value_stride : a.key_stride, ChunkAt(a, place, next.slot));
    next.slot = NextSlot(a, next.slot);
    next.first += kKeyChunk;
    const int end = next.tile + kKeyTile < a.keys ? next.tile + kKeyTile : a.keys;
    if (next.first >= end) {
      if (next.values) next.tile += kKeyTile;
      next.values = !next.values;
      next.first = next.tile;
    }
  }
  CommitCopies();
}

// Waits for the next chunk, and starts to copy a later one: those before it have been read by all.
template <typename C>
DEVICE uint8_t* NextChunk(const AttentionArguments& a, const Place& place, Chunks& next) {
  if (a.stages == 1) {
    Sync();
    StageChunk<C>(a, place, next);
    WaitCopies<0>();
    Sync();
  } else {
    WaitCopies<1>();
    Sync();
    StageChunk<C>(a, place, next);
  }
  uint8_t* const chunk = ChunkAt(a, place, next.read_slot);
  next.read_slot = NextSlot(a, next.read_slot);
  return chunk;
}

}  // namespace attention

#endif  // FP4DIT_GPU_KERNELS_ATTENTION_CHUNKS_H_
