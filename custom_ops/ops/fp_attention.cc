#include "ops/fp_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/counters.h"
#include "core/parallel.h"
#include "cpu/packing/packed_weights.h"

namespace fp4dit {
namespace {

using In = AttentionTensors;

// Most rows of one task.
constexpr size_t kRows = kMaxTileRows;
// Group scales and biases of a panel of values.
constexpr size_t kMostScales = 1024;
// A decoded panel of a tile of values.
constexpr size_t kDecodedBytes = size_t{3} << 14;
struct Constants {
  float one[kMostScales];
  float zero[kMostScales];
};
constexpr Constants kConstants = [] {
  Constants c = {};
  for (float& v : c.one) v = 1.0f;
  return c;
}();
constexpr int8_t kNoTable[16] = {};

size_t Tiles(size_t size, size_t tile) { return (size + tile - 1) / tile; }
size_t RoundUp(size_t size, size_t step) { return Tiles(size, step) * step; }

// Bytes of a panel of `k` inputs that are stored as they are, in groups.
size_t PanelBytes(const PanelLayout& layout, size_t k, size_t group, size_t element) {
  const size_t rest = k % group;
  const size_t padded = k / group * RoundUp(group, layout.k_step) + RoundUp(rest, layout.k_step);
  return padded * layout.panel_width * element;
}

// Where element (channel n, input k) of one group of a panel is, in elements.
size_t ElementAt(const PanelLayout& layout, size_t n, size_t k) {
  return k / layout.k_unit * layout.k_unit * layout.panel_width + n * layout.k_unit +
         k % layout.k_unit;
}

}  // namespace

// How kernels find what they read.
struct FpAttention::Call : AttentionTensors {
  const uint8_t* Integers(size_t input, size_t b, size_t token, size_t h) const {
    const Tensor& t = inputs[input];
    const size_t tokens = input == In::kQ ? queries : keys;
    return t.As<uint8_t>() + ((b * tokens + token) * heads + h) * size * TypeSize(t.type);
  }
  float Scale(size_t input, size_t b, size_t token, size_t h) const {
    const size_t tokens = input == In::kQScale ? queries : keys;
    return inputs[input].As<float>()[(b * tokens + token) * heads + h];
  }
  float Bias(size_t b, size_t key) const {
    const Tensor& t = inputs[In::kBias];
    const size_t columns = t.Dim(3);
    return t.As<float>()[(t.Dim(0) == 1 ? 0 : b) * columns + (columns == 1 ? 0 : key)];
  }
};

// Keys and values of every head, laid out for the kernels, in one buffer.
struct FpAttention::Packed {
  const LinearKernel* kernel;  // of the values
  size_t task_rows;
  size_t key_panel, keys;     // bytes of a panel, of a head
  size_t value_tile, values;  // bytes of a whole tile's panels, of a head
  size_t floats;              // of each of the three arrays below, a head
  size_t head;                // bytes of all of a head
  uint8_t* data;

  uint8_t* Keys(size_t h) const { return data + h * head; }
  uint8_t* Values(size_t h) const { return Keys(h) + keys; }
  float* KeyScale(size_t h) const { return reinterpret_cast<float*>(Values(h) + values); }
  float* KeyBias(size_t h) const { return KeyScale(h) + floats; }
  float* ValueScale(size_t h) const { return KeyBias(h) + floats; }
};

// What a task keeps on its stack.
struct FpAttention::Workspace {
  // Scores; before there are any, queries to be staged, and when they are spent, staged weights.
  alignas(64) uint8_t spare[kRows * kKeyTile * sizeof(float)];
  alignas(64) int16_t weights[kRows * kKeyTile];
  alignas(64) uint8_t decoded[kDecodedBytes];
  alignas(64) uint8_t staged_queries[kRows * (kMaxHeadSize * sizeof(int16_t) + 128)];
  float query_scale[kRows];
  float weight_scale[kRows];
  float max[kRows];
  float sum[kRows];
  float shrink[kRows];
  int32_t max_query;
  float* y;  // of the first row

  float* scores() { return reinterpret_cast<float*>(spare); }
};

OrtStatus* FpAttention::Create(const Node& node) {
  FP4DIT_RETURN_IF_ERROR(attention_.Read(node));
  const IntegerType type = attention_.type;
  const size_t isa = Selected().isa;
  const WeightStorage storage = type == kInt8Type ? kBytes : kShorts;
  scores_ = ChooseLinear(isa, attention_.kind(), storage);
  values_ = ChooseLinear(isa, kDotInt16, storage);
  softmax_ = ChooseSoftmax(isa);
  // Bounds of what a task keeps on its stack: kernels that there are keep well within them.
  const size_t group = attention_.value_group;
  const size_t weights =
      values_.kernel->staged_bytes({nullptr, kInt16Type, kRows, kKeyTile, group});
  const size_t queries =
      scores_.kernel->staged_bytes({nullptr, type, kRows, kMaxHeadSize, kMaxHeadSize});
  if (weights > sizeof(Workspace::spare) || queries > sizeof(Workspace::staged_queries) ||
      kKeyTile / group * values_.kernel->layout.panel_width > kMostScales) {
    return node.Fail("format '%s' is wider than its kernels take", attention_.format->name);
  }
  return nullptr;
}

FpAttention::Packed FpAttention::Layout(const Call& call) const {
  const size_t element = attention_.type == kInt8Type ? 1 : 2;
  const PanelLayout& keys = scores_.kernel->layout;
  Packed p = {};
  p.kernel = ChooseNarrow(values_, attention_.type == kInt8Type ? kBytes : kShorts, call.size);
  // As few tasks as may be, of the same size, in whole steps.
  const size_t even = Tiles(call.queries, Tiles(call.queries, kRows));
  p.task_rows = std::min(kRows, RoundUp(even, p.kernel->row_step));
  const PanelLayout& values = p.kernel->layout;
  p.key_panel = PanelBytes(keys, call.size, call.size, element);
  p.keys = RoundUp(Tiles(call.keys, keys.panel_width) * p.key_panel, 64);
  const size_t panels = Tiles(call.size, values.panel_width);
  p.value_tile = panels * PanelBytes(values, kKeyTile, attention_.value_group, element);
  p.values = RoundUp(Tiles(call.keys, kKeyTile) * p.value_tile, 64);
  p.floats = RoundUp(call.keys, kKeyTile);
  p.head = p.keys + p.values + 3 * p.floats * sizeof(float);
  return p;
}

void FpAttention::PackHead(const Call& call, const Packed& packed, size_t head) const {
  const size_t b = head / call.heads;
  const size_t h = head % call.heads;
  const size_t element = attention_.type == kInt8Type ? 1 : 2;
  const PanelLayout& layout = scores_.kernel->layout;
  std::memset(packed.Keys(head), 0, packed.head);
  for (size_t token = 0; token < call.keys; ++token) {
    uint8_t* panel = packed.Keys(head) + token / layout.panel_width * packed.key_panel;
    const uint8_t* row = call.Integers(In::kK, b, token, h);
    uint8_t* to = panel + ElementAt(layout, token % layout.panel_width, 0) * element;
    const size_t unit = layout.k_unit * element;
    const size_t step = unit * layout.panel_width;
    size_t left = call.size * element;
    if (unit == 4) {  // as most kernels have it: a fixed size spares a call for each word
      for (; left >= 4; left -= 4, row += 4, to += step) std::memcpy(to, row, 4);
    }
    for (; left >= unit; left -= unit, row += unit, to += step) std::memcpy(to, row, unit);
    std::memcpy(to, row, left);
    packed.KeyScale(head)[token] =
        call.Scale(In::kKScale, b, token, h) * attention_.attention_scale;
    packed.KeyBias(head)[token] = call.Bias(b, token);
    packed.ValueScale(head)[token] = call.Scale(In::kVScale, b, token, h);
  }
  PackValues(call, packed, head);
}

void FpAttention::PackValues(const Call& call, const Packed& packed, size_t head) const {
  const size_t element = attention_.type == kInt8Type ? 1 : 2;
  const PanelLayout& layout = packed.kernel->layout;
  const size_t group_bytes =
      RoundUp(attention_.value_group, layout.k_step) * layout.panel_width * element;
  const size_t unit = layout.k_unit;
  for (size_t token = 0; token < call.keys; ++token) {
    const size_t tile = token / kKeyTile;
    const size_t size = std::min(kKeyTile, call.keys - tile * kKeyTile);
    const size_t panel_bytes = PanelBytes(layout, size, attention_.value_group, element);
    uint8_t* const group = packed.Values(head) + tile * packed.value_tile +
                           token % kKeyTile / attention_.value_group * group_bytes;
    const size_t k = token % kKeyTile % attention_.value_group;
    const uint8_t* row = call.Integers(In::kV, head / call.heads, token, head % call.heads);
    const bool pair = element == 1 && unit == 2 && token + 1 < call.keys;
    const uint8_t* next = pair ? row + call.heads * call.size : row;
    for (size_t d = 0; d < call.size; d += layout.panel_width) {
      uint8_t* to =
          group + d / layout.panel_width * panel_bytes + ElementAt(layout, 0, k) * element;
      const size_t count = std::min(layout.panel_width, call.size - d);
      if (pair) {
        for (size_t n = 0; n < count; ++n) {
          to[2 * n] = row[d + n];
          to[2 * n + 1] = next[d + n];
        }
        continue;
      }
      for (size_t n = 0; element == 1 && n < count; ++n) to[n * unit] = row[d + n];
      for (size_t n = 0; element == 2 && n < count; ++n) {
        std::memcpy(to + n * unit * 2, row + (d + n) * 2, 2);
      }
    }
    token += pair ? 1 : 0;
  }
}

// What all tiles of a task have in common.
LinearTile FpAttention::MakeTile(const void* staged, const float* scale, size_t rows) const {
  LinearTile tile = {};
  tile.staged = staged;
  tile.scale = scale;
  tile.scale_stride = 1;
  tile.table = kNoTable;
  tile.scale_group = SIZE_MAX;  // one scale a channel
  tile.storage = attention_.type == kInt8Type ? kBytes : kShorts;
  tile.max_weight = static_cast<int32_t>(attention_.format->max_integer());
  tile.rows = rows;
  return tile;
}

// scores = fma(query scale, key scale * exact sums, bias), a row of kKeyTile a query.
void FpAttention::Score(const Call& call, const Packed& packed, size_t head, size_t first,
                        size_t count, size_t rows, Workspace* work) const {
  const LinearKernel& kernel = *scores_.kernel;
  const size_t width = kernel.layout.panel_width;
  for (size_t n = 0; n < count; n += width) {
    const size_t panel = (first + n) / width;
    LinearTile tile = MakeTile(work->staged_queries, work->query_scale, rows);
    tile.panel = packed.Keys(head) + panel * packed.key_panel;
    tile.group_scale = packed.KeyScale(head) + panel * width;
    tile.bias = packed.KeyBias(head) + panel * width;
    tile.max_act = work->max_query;
    tile.y = work->scores() + n;
    tile.y_stride = kKeyTile;
    tile.columns = std::min(width, count - n);
    tile.k = tile.group_size = call.size;
    kernel.run(tile);
  }
}

// Softmax and its integers; then y = y * shrink + the tile's weighted values.
void FpAttention::Weigh(const Call& call, const Packed& packed, size_t head, size_t first,
                        size_t count, size_t rows, Workspace* work) const {
  const size_t padded = RoundUp(count, kSoftmaxLanes);
  for (size_t r = 0; r < rows && count < padded; ++r) {
    std::fill(work->scores() + r * kKeyTile + count, work->scores() + r * kKeyTile + padded,
              -INFINITY);
  }
  SoftmaxTile softmax = {};
  softmax.scores = work->scores();
  softmax.stride = kKeyTile;
  softmax.value_scale = packed.ValueScale(head) + first;
  softmax.count = padded;
  softmax.rows = rows;
  softmax.max = work->max;
  softmax.shrink = work->shrink;
  softmax.sum = work->sum;
  softmax.q = work->weights;
  softmax.q_stride = count;
  softmax.scale = work->weight_scale;
  softmax_.run(softmax);
  const LinearKernel& kernel = *packed.kernel;
  const size_t width = kernel.layout.panel_width;
  const Activations weights = {work->weights, kInt16Type, rows, count,
                               std::min(count, attention_.value_group)};
  LinearTile tile = MakeTile(work->spare, work->weight_scale, rows);
  if (kernel.copies_rows && count == weights.group_size && count % kernel.layout.k_step == 0) {
    tile.staged = work->weights;
  } else {
    tile.max_act = kernel.stage(weights, work->spare);
  }
  tile.group_scale = kConstants.one;
  tile.bias = kConstants.zero;
  tile.y_stride = call.heads * call.size;
  tile.keep = first == 0 ? nullptr : work->shrink;
  tile.k = count;
  tile.group_size = weights.group_size;
  const size_t panel_bytes = PanelBytes(kernel.layout, count, attention_.value_group,
                                        attention_.type == kInt8Type ? 1 : 2);
  for (size_t d = 0; d < call.size; d += width) {
    tile.panel =
        packed.Values(head) + first / kKeyTile * packed.value_tile + d / width * panel_bytes;
    tile.y = work->y + d;
    tile.columns = std::min(width, call.size - d);
    tile.decoded = nullptr;
    if (kernel.decoded_bytes(tile) <= kDecodedBytes) {
      kernel.decode(tile, work->decoded);
      tile.decoded = work->decoded;
    }
    kernel.run(tile);
  }
}

void FpAttention::RunTask(const Call& call, const Packed& packed, size_t task) const {
  const size_t row_tiles = Tiles(call.queries, packed.task_rows);
  const size_t head = task / row_tiles;
  const size_t row = task % row_tiles * packed.task_rows;
  const size_t rows = std::min(packed.task_rows, call.queries - row);
  const size_t b = head / call.heads;
  const size_t h = head % call.heads;
  const size_t bytes = call.size * (attention_.type == kInt8Type ? 1 : 2);
  Workspace work;
  for (size_t r = 0; r < rows; ++r) {
    std::memcpy(work.spare + r * bytes, call.Integers(In::kQ, b, row + r, h), bytes);
    work.query_scale[r] = call.Scale(In::kQScale, b, row + r, h);
    work.max[r] = -INFINITY;
    work.sum[r] = 0.0f;
  }
  work.max_query = scores_.kernel->stage({work.spare, attention_.type, rows, call.size, call.size},
                                         work.staged_queries);
  work.y = call.y + ((b * call.queries + row) * call.heads + h) * call.size;
  for (size_t first = 0; first < call.keys; first += kKeyTile) {
    const size_t count = std::min(kKeyTile, call.keys - first);
    Score(call, packed, head, first, count, rows, &work);
    Weigh(call, packed, head, first, count, rows, &work);
  }
  for (size_t r = 0; r < rows; ++r) {
    float* y = work.y + r * call.heads * call.size;
    for (size_t d = 0; d < call.size; ++d) y[d] /= work.sum[r];
  }
}

OrtStatus* FpAttention::Compute(OrtKernelContext* context) const {
  Call call = {};
  FP4DIT_RETURN_IF_ERROR(attention_.Begin(context, &call));
  const size_t heads = call.batch * call.heads;
  if (heads == 0 || call.queries == 0) return nullptr;
  Count(kCountFpAttention, attention_.type, scores_.isa);
  Packed packed = Layout(call);
  KeptBuffer buffer(packed.head * heads);
  packed.data = buffer.data();
  if (packed.data == nullptr) return attention_.node.Fail("there is no memory to lay out its keys");
  const auto pack = [&](size_t begin, size_t end) {
    for (size_t head = begin; head < end; ++head) PackHead(call, packed, head);
  };
  FP4DIT_RETURN_IF_ERROR(ParallelFor(attention_.node.api, context, heads, 1, pack));
  const auto run = [&](size_t begin, size_t end) {
    for (size_t task = begin; task < end; ++task) RunTask(call, packed, task);
  };
  return ParallelFor(attention_.node.api, context, heads * Tiles(call.queries, packed.task_rows), 1,
                     run);
}

void FpAttention::InferShapes(const ShapeInference& inference) {
  inference.SetOutput(0, ort::kFloat, inference.Input(In::kQ));
}

FP4DIT_DEFINE_OP(FpAttention)

}  // namespace fp4dit
