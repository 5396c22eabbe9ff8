// The weights of one FpLinear, laid out for the kernel that will read them.

#ifndef FP4DIT_CPU_PACKING_PACKED_WEIGHTS_H_
#define FP4DIT_CPU_PACKING_PACKED_WEIGHTS_H_

#include <cstddef>
#include <cstdint>

#include "core/formats.h"
#include "cpu/kernels/kernels.h"

namespace fp4dit {

// Memory aligned to a cache line, or empty if there was none.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  ~AlignedBuffer();
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  // False if there is no such memory. The contents are not set.
  bool Allocate(size_t size);
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_ = nullptr;
};

// Memory for the time of a call, aligned to a cache line. The last one given back is kept for the
// next call of any node, so that in the long run none is allocated.
class KeptBuffer {
 public:
  explicit KeptBuffer(size_t size);
  ~KeptBuffer();
  KeptBuffer(const KeptBuffer&) = delete;
  KeptBuffer& operator=(const KeptBuffer&) = delete;

  // Null if there was no memory.
  uint8_t* data() const;

 private:
  struct Block;
  Block* block_;
};

// Bytes of the codes of a row of `k` inputs, of which the first `wide` have codes of `format` and
// all others a bit each: 0 for the grid integer 1, 1 for -1, the first in the lowest bit.
inline size_t StoredBytes(const Format& format, size_t k, size_t wide) {
  if (wide < k) return wide / 2 + (k - wide) / 8 + ((k - wide) % 8 != 0 ? 1 : 0);
  return format.storage_bits == 4 ? k / 2 + k % 2 : k;
}

// The weights as the model holds them.
struct WeightSource {
  const Format* format;
  size_t n, k, group_size;  // group_size <= k
  const uint8_t* codes;     // [n, row_bytes()], see numerics.pack
  const void* scales;       // [n, groups], or [n] beside multipliers
  bool scales_are_half;
  const float* bias;                     // [n]
  const uint8_t* multipliers = nullptr;  // or [n, ceil(groups / 2)], two a byte as 4-bit codes are
  size_t act_group = SIZE_MAX;           // inputs that share a scale of a row
  size_t wide = SIZE_MAX;                // see StoredBytes; even where it is less than k

  size_t groups() const { return k / group_size + (k % group_size != 0 ? 1 : 0); }
  size_t row_bytes() const { return StoredBytes(*format, k, wide); }
  // Inputs that share a scale of a channel, and that are summed before any scale is applied.
  size_t scale_group() const { return multipliers != nullptr ? k : group_size; }
  size_t run() const { return scale_group() < act_group ? scale_group() : act_group; }
  // Code of channel `row` and input `input`.
  uint8_t Code(size_t row, size_t input) const;
  // Multiplier of channel `row` in group `group`.
  int32_t Multiplier(size_t row, size_t group) const {
    return multipliers[row * ((groups() + 1) / 2) + group / 2] >> (group % 2 * 4) & 15;
  }
  int32_t LargestMultiplier() const;
};

enum class PackResult { kDone, kNoMemory, kTooLarge };

// Weights with signs stay as the model holds them, and each panel is laid out when it is read.
class PackedWeights {
 public:
  // Lays `source` out. All codes must be codes of its format (see FindBadCode).
  PackResult Pack(const WeightSource& source, const PanelLayout& layout);

  size_t panel_count() const { return panel_count_; }
  size_t group_size() const { return group_size_; }
  size_t multiplier_group() const { return multiplier_group_; }
  // Bytes that `SetPanel` lays a panel out in; 0 where panels are laid out already.
  size_t scratch_bytes() const { return source_.codes == nullptr ? 0 : panel_bytes_; }
  // Fills what a tile needs of panel `index`; `scratch` is of scratch_bytes(), 64-byte aligned.
  // Null: all but the panel itself.
  void SetPanel(size_t index, uint8_t* scratch, LinearTile* tile) const;

 private:
  void ChooseStorage(const WeightSource& source);
  void PackPanel(const WeightSource& source, size_t panel, uint8_t* block) const;
  void PackScales(const WeightSource& source, size_t panel);
  void PackBlock(const uint8_t* codes, const uint8_t* factors, uint8_t* block) const;

  PanelLayout layout_ = {};
  WeightStorage storage_ = kNibbles;
  int32_t max_weight_ = 0;
  alignas(16) int8_t table_[16] = {};
  float grid_[256] = {};
  size_t n_ = 0;
  size_t k_ = 0;
  size_t group_size_ = 0;  // inputs of a group of LinearTile
  size_t scale_group_ = 0;
  size_t scale_groups_ = 0;
  size_t multiplier_group_ = 0;  // 0: there are none, or the weights are bytes that have them
  size_t act_group_ = 0;
  size_t panel_count_ = 0;
  size_t panel_bytes_ = 0;
  size_t block_bytes_ = 0;
  WeightSource source_ = {};  // of weights with signs, its codes and multipliers in panels_
  AlignedBuffer panels_;
  AlignedBuffer group_scales_;  // float [panel][scale group][panel_width]
  AlignedBuffer multipliers_;   // [panel][multiplier group][panel_width]
  AlignedBuffer bias_;          // float [panel][panel_width]
};

// How weights of `format` are held.
WeightStorage StorageOf(const Format& format);

// Index of the first of `count` stored bytes that is no code of `format`, or `count`.
size_t FindBadCode(const Format& format, const uint8_t* codes, size_t count);

// The float32 of the bits of a float16.
float HalfToFloat(uint16_t half);

}  // namespace fp4dit

#endif  // FP4DIT_CPU_PACKING_PACKED_WEIGHTS_H_
