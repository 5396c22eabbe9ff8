// The tile registers of AMX, as amx_int8.cc uses them; see linear_tile-inl.h on the anonymous
// namespace. With FP4DIT_EMULATE_AMX, which only tests define, they are plain C++ that checks what
// the processor would refuse.
//
// A block of products is 2 x 2 tiles: four of sums, two of activations, two of weights.

#ifndef FP4DIT_CPU_KERNELS_AMX_TILES_INL_H_
#define FP4DIT_CPU_KERNELS_AMX_TILES_INL_H_

#include <cstddef>
#include <cstdint>

#include "cpu/kernels/linear_tile-inl.h"

namespace fp4dit {
namespace {

constexpr size_t kTileRows = 16;   // most rows of a tile
constexpr size_t kTileBytes = 64;  // of a row
constexpr size_t kTileWords = kTileBytes / sizeof(int32_t);

// Sums of activations i and weights j are tile 2 * i + j.
constexpr int kActTile = 4;
constexpr int kWeightTile = 6;
constexpr int kTileCount = 8;

// What LDTILECFG reads.
struct TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "the processor's layout");

// Tiles for two tiles of activations of so many rows each; the second may have none.
inline TileConfig MakeTileConfig(size_t first_rows, size_t second_rows) {
  TileConfig config = {};
  config.palette = 1;
  const size_t rows[kTileCount] = {first_rows, first_rows,  second_rows, second_rows,
                                   first_rows, second_rows, kTileRows,   kTileRows};
  for (int i = 0; i < kTileCount; ++i) {
    config.rows[i] = static_cast<uint8_t>(rows[i]);
    config.row_bytes[i] = rows[i] == 0 ? uint16_t{0} : uint16_t{kTileBytes};
  }
  return config;
}

}  // namespace
}  // namespace fp4dit

#if defined(FP4DIT_EMULATE_AMX)
#include "amx_emulation-inl.h"
#else

namespace fp4dit {
namespace {

// Written out in assembly: GCC's intrinsics want the tile's number as a literal, and do not say
// that they read memory, so that stores before them may be dropped.
struct Tiles {
  static void Configure(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  static void Release() { __asm__ volatile("tilerelease"); }

  template <int kTile>
  static FP4DIT_ALWAYS_INLINE void Zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  // Rows of a tile are `stride` bytes apart.
  template <int kTile>
  static FP4DIT_ALWAYS_INLINE void Load(const void* from, size_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(from), "r"(stride), "i"(kTile)
                     : "memory");
  }
  template <int kTile>
  static FP4DIT_ALWAYS_INLINE void Store(void* to, size_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(to), "r"(stride), "i"(kTile)
                     : "memory");
  }
  // sums += products of signed or unsigned bytes of activations and signed ones of weights.
  template <int kSums, int kAct, int kWeight>
  static FP4DIT_ALWAYS_INLINE void MultiplySigned() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0"
                     :
                     : "i"(kSums), "i"(kAct), "i"(kWeight));
  }
  template <int kSums, int kAct, int kWeight>
  static FP4DIT_ALWAYS_INLINE void MultiplyUnsigned() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0"
                     :
                     : "i"(kSums), "i"(kAct), "i"(kWeight));
  }
};

}  // namespace
}  // namespace fp4dit

#endif

#endif  // FP4DIT_CPU_KERNELS_AMX_TILES_INL_H_
