// The tile registers of AMX in plain C++, as Intel's architecture manual has them: what would be a
// fault there ends the test here. Included by cpu/kernels/amx_tiles-inl.h.

#ifndef FP4DIT_TESTS_AMX_EMULATION_INL_H_
#define FP4DIT_TESTS_AMX_EMULATION_INL_H_

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fp4dit {
namespace {

inline void RequireOfTiles(bool condition, const char* what) {
  if (condition) return;
  std::printf("AMX emulation: %s\n", what);
  std::fflush(stdout);
  std::abort();
}

struct EmulatedTile {
  size_t rows;
  size_t row_bytes;
  uint8_t bytes[kTileRows][kTileBytes];
};

// A thread's, as the registers are; without rows until they are configured.
inline EmulatedTile& TileOfThread(int index) {
  static thread_local EmulatedTile tiles[kTileCount];
  return tiles[index];
}

struct Tiles {
  static void Configure(const TileConfig& config) {
    RequireOfTiles(config.palette == 1 && config.start_row == 0, "the palette or start row");
    for (const uint8_t byte : config.reserved) RequireOfTiles(byte == 0, "reserved bytes");
    for (int i = 0; i < 16; ++i) {
      const size_t rows = config.rows[i];
      const size_t row_bytes = config.row_bytes[i];
      RequireOfTiles(rows <= kTileRows && row_bytes <= kTileBytes, "a tile is too large");
      RequireOfTiles((rows == 0) == (row_bytes == 0), "rows without columns or the reverse");
      RequireOfTiles(i < kTileCount || rows == 0, "a tile that does not exist");
      if (i >= kTileCount) continue;
      RequireOfTiles(TileOfThread(i).rows == 0, "the last user did not release the tiles");
      TileOfThread(i) = {rows, row_bytes, {}};
    }
  }

  static void Release() {
    for (int i = 0; i < kTileCount; ++i) TileOfThread(i) = {};
  }

  template <int kTile>
  static EmulatedTile& Used() {
    static_assert(kTile >= 0 && kTile < kTileCount, "there are eight tiles");
    RequireOfTiles(TileOfThread(kTile).rows != 0, "a tile is used that was not configured");
    return TileOfThread(kTile);
  }

  template <int kTile>
  static void Zero() {
    std::memset(Used<kTile>().bytes, 0, sizeof(EmulatedTile::bytes));
  }

  template <int kTile>
  static void Load(const void* from, size_t stride) {
    Zero<kTile>();
    EmulatedTile& tile = Used<kTile>();
    for (size_t r = 0; r < tile.rows; ++r) {
      std::memcpy(tile.bytes[r], static_cast<const uint8_t*>(from) + r * stride, tile.row_bytes);
    }
  }

  template <int kTile>
  static void Store(void* to, size_t stride) {
    const EmulatedTile& tile = Used<kTile>();
    for (size_t r = 0; r < tile.rows; ++r) {
      std::memcpy(static_cast<uint8_t*>(to) + r * stride, tile.bytes[r], tile.row_bytes);
    }
  }

  template <int kSums, int kAct, int kWeight>
  static void MultiplySigned() {
    Multiply<int8_t, kSums, kAct, kWeight>();
  }
  template <int kSums, int kAct, int kWeight>
  static void MultiplyUnsigned() {
    Multiply<uint8_t, kSums, kAct, kWeight>();
  }

 private:
  template <typename ActByte, int kSums, int kAct, int kWeight>
  static void Multiply() {
    static_assert(kSums != kAct && kSums != kWeight && kAct != kWeight, "three tiles");
    EmulatedTile& sums = Used<kSums>();
    const EmulatedTile& act = Used<kAct>();
    const EmulatedTile& weight = Used<kWeight>();
    RequireOfTiles(sums.rows == act.rows, "rows of sums and activations");
    RequireOfTiles(sums.row_bytes == weight.row_bytes, "columns of sums and weights");
    RequireOfTiles(act.row_bytes == 4 * weight.rows, "inner sizes");
    for (size_t r = 0; r < sums.rows; ++r) {
      uint32_t row[kTileWords];
      std::memcpy(row, sums.bytes[r], sizeof(row));
      for (size_t k = 0; k < weight.rows; ++k) {
        AddProducts<ActByte>(act.bytes[r] + 4 * k, weight.bytes[k], row);
      }
      std::memcpy(sums.bytes[r], row, sizeof(row));
    }
  }

  // Four activations times four weights of every channel; unsigned, as the sums wrap.
  template <typename ActByte>
  static void AddProducts(const uint8_t* act, const uint8_t* weight, uint32_t* sums) {
    for (size_t n = 0; n < kTileWords; ++n) {
      for (size_t i = 0; i < 4; ++i) {
        const int32_t a = static_cast<ActByte>(act[i]);
        const int32_t w = static_cast<int8_t>(weight[4 * n + i]);
        sums[n] += static_cast<uint32_t>(a * w);
      }
    }
  }
};

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_TESTS_AMX_EMULATION_INL_H_
