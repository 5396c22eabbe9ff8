// The integer kernels in AMX: tiles of 16 rows times 16 channels, 64 inputs an instruction.
//
// A group of one panel is decoded to int8 once and stays in the first-level cache, 64 inputs x 64
// channels being 4 KiB, while all rows of the tile pass. Blocks of 2 x 2 tiles leave their int32
// sums in memory; AVX-512 folds them into the float sums while the tiles of the next block
// multiply.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/amx_decode-inl.h"
#include "cpu/kernels/amx_staging-inl.h"
#include "cpu/kernels/amx_tiles-inl.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/x86-inl.h"

namespace fp4dit {
namespace {

constexpr size_t kBlockColumns = 2 * kTileWords;
constexpr size_t kBlockSums = 2 * kTileRows * kBlockColumns;
constexpr size_t kCacheLine = 64;

// Tiles take as long to load for one row as for 16. For very few rows AVX-512 reads the same
// panels.
constexpr size_t kFewRows = 3;
using FewRows = BroadcastDot<VnniBytes512, kPanel, kFewRows>;
static_assert(FewRows::kUnit == kUnit && FewRows::kStep == kUnit, "the same panels");

// Activations of int8: a block is two tiles of rows.
struct ByteTiles {
  static constexpr size_t kRows = 2 * kTileRows;
  static constexpr bool kTwoPlanes = false;

  template <int kSums, int kWeight>
  static FP4DIT_ALWAYS_INLINE void MultiplySecond() {
    Tiles::MultiplySigned<kSums, kActTile + 1, kWeight>();
  }
  static __m512i Sum(const int32_t* sums) { return Vector512::Load(sums); }
};

// Activations of int16, as 256 * high + low: a block is one tile of rows, of both planes. The high
// byte is signed, the low one is not, so any int16 will do.
struct ShortTiles {
  static constexpr size_t kRows = kTileRows;
  static constexpr Reach kReach = {256, 0};
  static constexpr bool kTwoPlanes = true;

  template <int kSums, int kWeight>
  static FP4DIT_ALWAYS_INLINE void MultiplySecond() {
    Tiles::MultiplyUnsigned<kSums, kActTile + 1, kWeight>();
  }
  static __m512i Sum(const int32_t* sums) {
    const __m512i high = _mm512_slli_epi32(Vector512::Load(sums), 8);
    return _mm512_add_epi32(high, Vector512::Load(sums + kTileRows * kBlockColumns));
  }
};

// Sums of a block that are still to be folded into float sums.
struct Fold {
  const int32_t* sums;
  const float* scale;      // of the channels
  const float* act_scale;  // null, or of the first row: see LinearTile
  size_t act_stride;
  float* to;  // rows kPanel apart
  size_t rows;
};

template <typename Dot>
FP4DIT_ALWAYS_INLINE void FoldRows(Fold* fold, size_t most) {
  const size_t rows = fold->rows < most ? fold->rows : most;
  if (rows == 0) return;
  __m512 left = _mm512_loadu_ps(fold->scale);
  __m512 right = _mm512_loadu_ps(fold->scale + kTileWords);
  const int32_t* sums = fold->sums;
  const float* act_scale = fold->act_scale;
  float* to = fold->to;
  for (size_t r = 0; r < rows; ++r, sums += kBlockColumns, to += kPanel) {
    if (act_scale != nullptr) {
      left = right = _mm512_set1_ps(*act_scale);
      act_scale += fold->act_stride;
    }
    const __m512 first = _mm512_cvtepi32_ps(Dot::Sum(sums));
    const __m512 second = _mm512_cvtepi32_ps(Dot::Sum(sums + kTileWords));
    _mm512_store_ps(to, _mm512_fmadd_ps(left, first, _mm512_load_ps(to)));
    float* const other = to + kTileWords;
    _mm512_store_ps(other, _mm512_fmadd_ps(right, second, _mm512_load_ps(other)));
  }
  *fold = {sums, fold->scale, act_scale, fold->act_stride, to, fold->rows - rows};
}

// Staged rows that will be read next.
struct Ahead {
  const uint8_t* at;
  size_t lines;

  // Half of the lines that a step of a block reads: two blocks of channels read the same.
  FP4DIT_ALWAYS_INLINE void Prefetch() {
    if (lines < kTileRows) return;
    for (size_t i = 0; i < kTileRows; ++i, at += kCacheLine) {
      _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
    }
    lines -= kTileRows;
  }
};

// Some inputs of a group, for all rows.
struct Chunk {
  const uint8_t* act;    // staged, of the first row
  size_t padded;         // bytes from row to row
  const int8_t* weight;  // of the panel
  size_t steps;
  const float* scale;      // the group's, of the panel's channels
  const float* act_scale;  // null, or the group's, of the first row: see LinearTile
  bool first, last;        // of its group
};

// A chunk for a block of rows and kBlockColumns channels.
struct Block {
  const Chunk* chunk;
  const uint8_t* act;  // the first tile of activations
  size_t second;       // bytes from there to the second
  const int8_t* weight;
  int32_t* sums;  // [2][kTileRows][kBlockColumns]
};

template <bool kTwo>
FP4DIT_ALWAYS_INLINE void BeginSums(const Block& block) {
  constexpr size_t kStride = kBlockColumns * sizeof(int32_t);
  int32_t* const second = block.sums + kTileRows * kBlockColumns;
  if (block.chunk->first) {  // sums start anew
    Tiles::Zero<0>();
    Tiles::Zero<1>();
    if constexpr (kTwo) Tiles::Zero<2>();
    if constexpr (kTwo) Tiles::Zero<3>();
  } else {
    Tiles::Load<0>(block.sums, kStride);
    Tiles::Load<1>(block.sums + kTileWords, kStride);
    if constexpr (kTwo) Tiles::Load<2>(second, kStride);
    if constexpr (kTwo) Tiles::Load<3>(second + kTileWords, kStride);
  }
}

template <bool kTwo>
FP4DIT_ALWAYS_INLINE void EndSums(const Block& block) {
  constexpr size_t kStride = kBlockColumns * sizeof(int32_t);
  int32_t* const second = block.sums + kTileRows * kBlockColumns;
  Tiles::Store<0>(block.sums, kStride);
  Tiles::Store<1>(block.sums + kTileWords, kStride);
  if constexpr (kTwo) Tiles::Store<2>(second, kStride);
  if constexpr (kTwo) Tiles::Store<3>(second + kTileWords, kStride);
}

// Multiplies `block`; between its steps, folds what the block before it left.
template <typename Dot, bool kTwo>
void MultiplyBlock(const Block& block, Fold* fold, Ahead* ahead) {
  const size_t steps = block.chunk->steps;
  const size_t stride = block.chunk->padded;
  const size_t share = (fold->rows + steps - 1) / steps;
  const uint8_t* act = block.act;
  const int8_t* weight = block.weight;
  BeginSums<kTwo>(block);
  for (size_t s = 0; s < steps; ++s, act += kStep, weight += kStep * kPanel) {
    Tiles::Load<kWeightTile>(weight, kPanel * kUnit);
    Tiles::Load<kActTile>(act, stride);
    Tiles::MultiplySigned<0, kActTile, kWeightTile>();
    Tiles::Load<kWeightTile + 1>(weight + kTileBytes, kPanel * kUnit);
    Tiles::MultiplySigned<1, kActTile, kWeightTile + 1>();
    if constexpr (kTwo) {
      Tiles::Load<kActTile + 1>(act + block.second, stride);
      Dot::template MultiplySecond<2, kWeightTile>();
      Dot::template MultiplySecond<3, kWeightTile + 1>();
    }
    ahead->Prefetch();
    FoldRows<Dot>(fold, share);
  }
  EndSums<kTwo>(block);
}

// The rows of a tile from `row` on that one block multiplies. Where fewer are left than a block
// has, it starts among rows that were multiplied before: the shape of tiles stays the same.
struct RowBlock {
  size_t start;
  size_t skip;  // rows that were folded before
  size_t rows;
  bool two;  // tiles of rows
};

template <typename Dot>
RowBlock BlockAt(size_t row, size_t rows) {
  const size_t left = rows - row;
  const bool two = !Dot::kTwoPlanes && left > kTileRows;
  const size_t height = two ? 2 * kTileRows : kTileRows;
  const size_t start = left >= height ? row : rows >= height ? rows - height : 0;
  return {start, row - start, rows - start < height ? rows - start : height, two};
}

template <typename Dot>
struct TileRun {
  // Of int8, most blocks are of two tiles of rows, and the last one may be of one.
  static constexpr size_t kMostBlocks = 2 * ((kMaxTileRows + Dot::kRows - 1) / Dot::kRows);

  const LinearTile* tile;
  Fold fold;
  alignas(64) int8_t decoded[kChunk * kPanel];
  alignas(64) int32_t sums[kMostBlocks * kBlockSums];
  alignas(64) float sum[kMaxTileRows * kPanel];
  FoldedRows<FewRows> folded;
  const int8_t* panel;  // what is left of it, if it was decoded before
};

// The last chunk's sums are left to fold.
template <typename Dot>
void RunChunk(TileRun<Dot>* run, const Chunk& chunk, Ahead* ahead) {
  const size_t rows = run->tile->rows;
  const size_t second = (Dot::kTwoPlanes ? rows : kTileRows) * chunk.padded;
  // Sums that no later chunk adds to are folded before the next block's are stored.
  const size_t next = chunk.first && chunk.last ? 0 : kBlockSums;
  int32_t* sums = run->sums;
  for (size_t row = 0; row < rows;) {
    const RowBlock b = BlockAt<Dot>(row, rows);
    for (size_t n = 0; n < kPanel; n += kBlockColumns, sums += next) {
      const Block block = {&chunk, chunk.act + b.start * chunk.padded, second,
                           chunk.weight + n * kUnit, sums};
      if (b.two || Dot::kTwoPlanes) {
        MultiplyBlock<Dot, true>(block, &run->fold, ahead);
      } else {
        MultiplyBlock<Dot, false>(block, &run->fold, ahead);
      }
      if (!chunk.last) continue;
      const size_t act_stride = run->tile->act_stride;
      const float* const act_scale =
          chunk.act_scale == nullptr ? nullptr : chunk.act_scale + row * act_stride;
      run->fold = {sums + b.skip * kBlockColumns, chunk.scale + n, act_scale, act_stride,
                   run->sum + row * kPanel + n,   b.rows - b.skip};
    }
    row = b.start + b.rows;
  }
}

template <typename Dot>
TileConfig ConfigFor(size_t rows) {
  const size_t first = rows < kTileRows ? rows : kTileRows;
  if (Dot::kTwoPlanes) return MakeTileConfig(first, first);
  return MakeTileConfig(first, rows >= 2 * kTileRows ? kTileRows : rows - first);
}

// All chunks of the group that begins at input `begin`, and its staged rows at `staged`; what is
// read `next` is fetched.
template <typename Dot>
void RunTileGroup(TileRun<Dot>* run, size_t begin, size_t size, const uint8_t* staged,
                  const uint8_t* next, const uint8_t** packed) {
  const LinearTile& tile = *run->tile;
  const size_t padded = RoundUp(size, kStep);
  const size_t bytes = tile.rows * padded * (Dot::kTwoPlanes ? 2 : 1);
  const float* const scale = tile.group_scale + begin / tile.scale_group * kPanel;
  const float* const act_scale =
      tile.act_scale == nullptr ? nullptr : tile.act_scale + begin / tile.act_group;
  Ahead ahead = {next, tile.rows > kTileRows ? bytes / kCacheLine : 0};
  for (size_t done = 0; done < size; done += kChunk) {
    const bool last = size - done <= kChunk;
    const size_t count = last ? size - done : kChunk;
    const size_t steps = RoundUp(count, kStep) / kStep;
    const int8_t* weight = run->panel;
    if (weight == nullptr) {
      weight = Decode(tile, begin + done, count, packed, run->decoded);
    } else {
      run->panel += steps * kStep * kPanel;
    }
    RunChunk<Dot>(run, {staged + done, padded, weight, steps, scale, act_scale, done == 0, last},
                  &ahead);
  }
  const bool ends = begin + size == tile.k || (begin + size) % tile.scale_group == 0;
  if (act_scale == nullptr || !ends) return;
  FoldRows<Dot>(&run->fold, run->fold.rows);
  run->folded.Fold(tile, scale, run->sum);
}

template <typename Dot>
void RunTiles(const LinearTile& tile) {
  TileRun<Dot> run;
  run.tile = &tile;
  run.fold = {};
  run.panel = static_cast<const int8_t*>(tile.decoded);
  std::memset(run.sum, 0, tile.rows * kPanel * sizeof(float));
  if (tile.act_scale != nullptr) run.folded.Begin(tile);
  const uint8_t* packed = tile.panel;
  const uint8_t* staged = static_cast<const uint8_t*>(tile.staged);
  Tiles::Configure(ConfigFor<Dot>(tile.rows));
  for (size_t begin = 0; begin < tile.k; begin += tile.group_size) {
    const bool final = tile.k - begin <= tile.group_size;
    const size_t size = final ? tile.k - begin : tile.group_size;
    const size_t bytes = tile.rows * RoundUp(size, kStep) * (Dot::kTwoPlanes ? 2 : 1);
    // After the last group comes the first one, of the next panel.
    const uint8_t* next = final ? static_cast<const uint8_t*>(tile.staged) : staged + bytes;
    RunTileGroup<Dot>(&run, begin, size, staged, next, &packed);
    staged += bytes;
  }
  FoldRows<Dot>(&run.fold, run.fold.rows);
  Tiles::Release();
  if (tile.act_scale != nullptr) {
    run.folded.End(tile);
  } else {
    FinishRows<Vector512, kPanel>(tile, run.sum);
  }
}

// The products of one or two planes.
template <typename Dot>
double Peak(size_t rounds) {
  alignas(64) uint8_t bytes[2 * kTileRows * kTileBytes];
  FillWithNoise(bytes, sizeof(bytes));
  Tiles::Configure(MakeTileConfig(kTileRows, kTileRows));
  Tiles::Load<kActTile>(bytes, kTileBytes);
  Tiles::Load<kActTile + 1>(bytes + kTileBytes, kTileBytes);
  Tiles::Load<kWeightTile>(bytes + 2 * kTileBytes, kTileBytes);
  Tiles::Load<kWeightTile + 1>(bytes + 3 * kTileBytes, kTileBytes);
  for (size_t i = 0; i < rounds; ++i) {
    Tiles::MultiplySigned<0, kActTile, kWeightTile>();
    Tiles::MultiplySigned<1, kActTile, kWeightTile + 1>();
    Dot::template MultiplySecond<2, kWeightTile>();
    Dot::template MultiplySecond<3, kWeightTile + 1>();
  }
  Tiles::Release();
  constexpr size_t kProducts = 4 * kTileRows * kTileWords * kStep;
  return static_cast<double>(rounds) * (Dot::kTwoPlanes ? 0.5 : 1.0) * kProducts;
}

static_assert(IsWithin(ShortTiles::kReach, kMostReach[kDotInt16]), "see kMostReach");

size_t StagedBytesOfBytes(const Activations& a) {
  const size_t few = StagedBytes<FewRows>(a);
  const size_t many = StagedBytes<StagedRows<int8_t>>(a);
  return few > many ? few : many;
}

int32_t StageBytes(const Activations& a, void* staged) {
  if (a.rows <= kFewRows) return Stage<FewRows>(a, staged);
  return Stage<StagedRows<int8_t>>(a, staged);
}

void RunBytes(const LinearTile& tile) {
  if (tile.rows <= kFewRows) {
    LinearTile few = tile;
    few.decoded = nullptr;
    RunLinearTile<FewRows>(few);
  } else {
    RunTiles<ByteTiles>(tile);
  }
}

}  // namespace

#if defined(FP4DIT_EMULATE_AMX)
#define FP4DIT_AMX_TABLE kAmxInt8EmulatedKernels
#else
#define FP4DIT_AMX_TABLE kAmxInt8Kernels
#endif

extern const Kernels FP4DIT_AMX_TABLE;
const Kernels FP4DIT_AMX_TABLE = {
    {{{kPanel, kUnit, kUnit},
      ByteTiles::kRows,
      kBytes,
      FewRows::kReach,
      StagedBytesOfBytes,
      StageBytes,
      RunBytes,
      DecodedBytes<TileSteps>,
      DecodeSteps,
      Peak<ByteTiles>},
     {{kPanel, kUnit, kUnit},
      ShortTiles::kRows,
      kBytes,
      ShortTiles::kReach,
      StagedBytes<StagedRows<int16_t>>,
      StageShorts,
      RunTiles<ShortTiles>,
      DecodedBytes<TileSteps>,
      DecodeSteps,
      Peak<ShortTiles>},
     {}},
    {},
    {},
};

}  // namespace fp4dit
