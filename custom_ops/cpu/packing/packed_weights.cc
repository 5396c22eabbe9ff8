#include "cpu/packing/packed_weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

namespace fp4dit {
namespace {

constexpr std::align_val_t kAlignment{64};
// Panel width times k_unit: the largest block that a layout may have.
constexpr size_t kMaxBlock = 1024;

size_t RoundUp(size_t size, size_t step) { return (size + step - 1) / step * step; }

// a * b, or 0 if that overflows.
size_t Product(size_t a, size_t b) { return b != 0 && a > SIZE_MAX / b ? 0 : a * b; }

uint16_t FloatToBfloat(float exact) {
  uint32_t bits;
  std::memcpy(&bits, &exact, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

}  // namespace

AlignedBuffer::~AlignedBuffer() { ::operator delete(data_, kAlignment); }

bool AlignedBuffer::Allocate(size_t size) {
  ::operator delete(data_, kAlignment);
  data_ = static_cast<uint8_t*>(::operator new(size, kAlignment, std::nothrow));
  return data_ != nullptr;
}

struct KeptBuffer::Block {
  AlignedBuffer buffer;
  size_t size;
};

namespace {
// Never freed at exit: a thread of the runtime may still run.
std::atomic<void*> kept_block{nullptr};
}  // namespace

KeptBuffer::KeptBuffer(size_t size)
    : block_(static_cast<Block*>(kept_block.exchange(nullptr, std::memory_order_acquire))) {
  if (block_ != nullptr && block_->size >= size) return;
  delete block_;
  block_ = new (std::nothrow) Block{{}, size};
  if (block_ != nullptr && !block_->buffer.Allocate(size)) {
    delete block_;
    block_ = nullptr;
  }
}

KeptBuffer::~KeptBuffer() {
  delete static_cast<Block*>(kept_block.exchange(block_, std::memory_order_acq_rel));
}

uint8_t* KeptBuffer::data() const { return block_ == nullptr ? nullptr : block_->buffer.data(); }

WeightStorage StorageOf(const Format& format) {
  if (format.storage_bits == 4) return kNibbles;
  if (format.max_integer() <= 127.0f) return kBytes;
  return format.max_integer() <= 32767.0f ? kShorts : kBfloats;
}

size_t FindBadCode(const Format& format, const uint8_t* codes, size_t count) {
  if (format.storage_bits == 4 || format.bits == 8) return count;
  for (size_t i = 0; i < count; ++i) {
    if (codes[i] >= format.code_count()) return i;
  }
  return count;
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u;
  const uint32_t mantissa = half & 1023u;
  float magnitude;
  if (exponent == 0) {
    magnitude = static_cast<float>(mantissa) * (1.0f / 16777216.0f);  // times 2^-24, exact
  } else {
    const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
    const uint32_t bits = (wide << 23) | (mantissa << 13);
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
  }
  uint32_t bits;
  std::memcpy(&bits, &magnitude, sizeof(bits));
  bits |= sign;
  std::memcpy(&magnitude, &bits, sizeof(magnitude));
  return magnitude;
}

uint8_t WeightSource::Code(size_t row, size_t input) const {
  const uint8_t* stored = codes + row * row_bytes();
  if (input >= wide) {
    const size_t bit = input - wide;
    const bool negative = (stored[wide / 2 + bit / 8] >> bit % 8 & 1) != 0;
    return static_cast<uint8_t>(negative ? format->code_count() / 2 + 1 : 1);
  }
  if (format->storage_bits == 8) return stored[input];
  return input % 2 == 0 ? stored[input / 2] & 15 : static_cast<uint8_t>(stored[input / 2] >> 4);
}

int32_t WeightSource::LargestMultiplier() const {
  int32_t largest = 0;
  for (size_t row = 0; row < n; ++row) {
    for (size_t g = 0; g < groups(); ++g) largest = std::max(largest, Multiplier(row, g));
  }
  return largest;
}

void PackedWeights::PackBlock(const uint8_t* codes, const uint8_t* factors, uint8_t* block) const {
  const size_t size = layout_.panel_width * layout_.k_unit;
  const size_t half = size / 2;
  for (size_t i = 0; i < (storage_ == kNibbles ? half : size); ++i) {
    if (storage_ == kNibbles) {
      block[i] = static_cast<uint8_t>(codes[i] | (codes[i + half] << 4));
    } else if (storage_ == kBytes) {
      block[i] = static_cast<uint8_t>(static_cast<int8_t>(grid_[codes[i]]) * factors[i]);
    } else {
      const float value = grid_[codes[i]];
      const uint16_t wide = storage_ == kShorts ? static_cast<uint16_t>(static_cast<int16_t>(value))
                                                : FloatToBfloat(value);
      std::memcpy(block + 2 * i, &wide, sizeof(wide));
    }
  }
}

// What a panel has by channel, and by channel and group.
void PackedWeights::PackScales(const WeightSource& source, size_t panel) {
  const size_t width = layout_.panel_width;
  const size_t multipliers = multiplier_group_ == 0 ? 0 : source.groups();
  float* bias = reinterpret_cast<float*>(bias_.data()) + panel * width;
  float* scales = reinterpret_cast<float*>(group_scales_.data()) + panel * scale_groups_ * width;
  uint8_t* factors = multipliers_.data() + panel * multipliers * width;
  for (size_t n = 0; n < width; ++n) {
    const size_t row = panel * width + n;
    const bool real = row < n_;
    bias[n] = real ? source.bias[row] : 0.0f;
    for (size_t g = 0; g < scale_groups_; ++g) {
      const size_t at = row * scale_groups_ + g;
      scales[g * width + n] = !real ? 0.0f
                              : source.scales_are_half
                                  ? HalfToFloat(static_cast<const uint16_t*>(source.scales)[at])
                                  : static_cast<const float*>(source.scales)[at];
    }
    for (size_t g = 0; g < multipliers; ++g) {
      factors[g * width + n] = static_cast<uint8_t>(real ? source.Multiplier(row, g) : 0);
    }
  }
}

void PackedWeights::PackPanel(const WeightSource& source, size_t panel, uint8_t* block) const {
  const size_t width = layout_.panel_width;
  const size_t unit = layout_.k_unit;
  const size_t first = panel * width;
  const size_t channels = n_ - first < width ? n_ - first : width;
  const bool multiplied = source.multipliers != nullptr && multiplier_group_ == 0;
  uint8_t factors[kMaxBlock];
  std::memset(factors, 1, sizeof(factors));
  for (size_t begin = 0; begin < k_; begin += group_size_) {
    const size_t end = k_ - begin < group_size_ ? k_ : begin + group_size_;
    const size_t padded = begin + RoundUp(end - begin, layout_.k_step);
    for (size_t k = begin; k < padded; k += unit, block += block_bytes_) {
      uint8_t codes[kMaxBlock] = {};
      for (size_t n = 0; n < channels; ++n) {
        for (size_t i = 0; i < unit && k + i < end; ++i) {
          codes[n * unit + i] = source.Code(first + n, k + i);
          if (!multiplied) continue;
          factors[n * unit + i] =
              static_cast<uint8_t>(source.Multiplier(first + n, (k + i) / source.group_size));
        }
      }
      PackBlock(codes, factors, block);
    }
  }
}

// Codes beside their multipliers, where kernels can tell which multiplier a block has.
void PackedWeights::ChooseStorage(const WeightSource& source) {
  storage_ = StorageOf(*source.format);
  multiplier_group_ = 0;
  max_weight_ = static_cast<int32_t>(storage_ == kBfloats ? 0.0f : source.format->max_integer());
  if (source.multipliers == nullptr) return;
  const size_t group = source.group_size;
  const bool nested = group == k_ || group_size_ % group == 0 || group % group_size_ == 0;
  const bool even = group_size_ == k_ || (group_size_ % kMultiplierStep == 0 && nested);
  if (storage_ == kNibbles && even && (group == k_ || group % kMultiplierStep == 0)) {
    multiplier_group_ = RoundUp(group, kMultiplierStep);
  } else {
    storage_ = kBytes;
    max_weight_ *= std::max(source.LargestMultiplier(), 1);
  }
}

PackResult PackedWeights::Pack(const WeightSource& source, const PanelLayout& layout) {
  layout_ = layout;
  n_ = source.n;
  k_ = source.k;
  group_size_ = source.run();
  scale_group_ = source.scale_group();
  scale_groups_ = source.multipliers != nullptr ? 1 : source.groups();
  act_group_ = source.act_group;
  ChooseStorage(source);
  for (size_t i = 0; i < source.format->code_count(); ++i) {
    grid_[i] = source.format->GridInteger(i);
    if (storage_ == kNibbles) table_[i] = static_cast<int8_t>(grid_[i]);
  }
  const size_t width = layout.panel_width;
  const size_t unit = layout.k_unit;
  if (width * unit > kMaxBlock) return PackResult::kTooLarge;
  block_bytes_ = storage_ == kNibbles ? width * unit / 2
                 : storage_ == kBytes ? width * unit
                                      : 2 * width * unit;
  panel_count_ = n_ / width + (n_ % width != 0 ? 1 : 0);
  const size_t groups = k_ / group_size_ + (k_ % group_size_ != 0 ? 1 : 0);
  const size_t last = k_ - (groups - 1) * group_size_;
  const size_t blocks = Product(groups - 1, RoundUp(group_size_, layout.k_step) / unit);
  panel_bytes_ = Product(blocks + RoundUp(last, layout.k_step) / unit, block_bytes_);
  const size_t scale_bytes = Product(Product(panel_count_, scale_groups_), width * sizeof(float));
  const size_t multiplier_bytes =
      multiplier_group_ == 0 ? 1 : Product(Product(panel_count_, source.groups()), width);
  const bool later = source.wide < k_;
  const size_t code_bytes = Product(n_, source.row_bytes());
  const bool multiplied = source.multipliers != nullptr && multiplier_group_ == 0;
  const size_t factor_bytes = later && multiplied ? n_ * ((source.groups() + 1) / 2) : 0;
  const size_t bytes = later ? code_bytes + factor_bytes : Product(panel_count_, panel_bytes_);
  if (n_ == 0) return PackResult::kDone;
  if (bytes == 0 || scale_bytes == 0 || multiplier_bytes == 0) return PackResult::kTooLarge;
  if (!panels_.Allocate(bytes) || !group_scales_.Allocate(scale_bytes) ||
      !multipliers_.Allocate(multiplier_bytes) ||
      !bias_.Allocate(panel_count_ * width * sizeof(float))) {
    return PackResult::kNoMemory;
  }
  for (size_t panel = 0; panel < panel_count_; ++panel) {
    PackScales(source, panel);
    if (!later) PackPanel(source, panel, panels_.data() + panel * panel_bytes_);
  }
  if (later) {
    std::memcpy(panels_.data(), source.codes, code_bytes);
    if (multiplied) std::memcpy(panels_.data() + code_bytes, source.multipliers, factor_bytes);
    source_ = source;
    source_.codes = panels_.data();
    source_.multipliers = panels_.data() + code_bytes;
    source_.scales = source_.bias = nullptr;
  }
  return PackResult::kDone;
}

void PackedWeights::SetPanel(size_t index, uint8_t* scratch, LinearTile* tile) const {
  const size_t width = layout_.panel_width;
  const size_t left = n_ - index * width;
  tile->panel = scratch_bytes() != 0 ? scratch : panels_.data() + index * panel_bytes_;
  if (scratch_bytes() != 0 && scratch != nullptr) PackPanel(source_, index, scratch);
  tile->group_scale =
      reinterpret_cast<const float*>(group_scales_.data()) + index * scale_groups_ * width;
  tile->scale_group = scale_group_;
  if (multiplier_group_ != 0) {
    const size_t groups = (k_ + multiplier_group_ - 1) / multiplier_group_;
    tile->multipliers = multipliers_.data() + index * groups * width;
  }
  tile->multiplier_group = multiplier_group_;
  tile->act_group = act_group_;
  tile->bias = reinterpret_cast<const float*>(bias_.data()) + index * width;
  tile->table = table_;
  tile->storage = storage_;
  tile->max_weight = max_weight_;
  tile->columns = left < width ? left : width;
  tile->k = k_;
  tile->group_size = group_size_;
}

}  // namespace fp4dit
