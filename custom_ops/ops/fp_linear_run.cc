// How the operators of fp_linear.h cut a call into tasks, and run them.
//
// Few rows: a task stages a tile of them and multiplies it by a range of panels, which are decoded
// on the way. Many: all are staged first, then a task decodes a panel once for as many rows as it
// has.

#include <algorithm>
#include <atomic>
#include <optional>

#include "core/parallel.h"
#include "ops/fp_linear.h"

namespace fp4dit {
namespace {

// Products worth handing to another thread, and to stage rows for: tens of microseconds.
constexpr size_t kPieceProducts = size_t{1} << 19;
constexpr size_t kTaskProducts = size_t{1} << 25;
// Tasks that are enough to keep many threads busy to the end.
constexpr size_t kEnoughTasks = 32;
// Staged rows of a task, or a decoded panel: they live on the stack and should stay in the
// second-level cache.
constexpr size_t kStackBytes = size_t{9} << 15;  // 288 KiB: 64 rows, or channels, of K = 4608
// Rows that are staged at once where panels are decoded once.
constexpr size_t kBandBytes = size_t{1} << 24;

// Memory in which a task lays out panels of weights with signs.
class Scratch {
 public:
  Scratch(const PackedWeights& weights, std::atomic<bool>* failed) {
    if (weights.scratch_bytes() == 0) return;
    buffer_.emplace(weights.scratch_bytes());
    if (buffer_->data() == nullptr) *failed = true;
  }
  uint8_t* data() const { return buffer_ ? buffer_->data() : nullptr; }

 private:
  std::optional<KeptBuffer> buffer_;
};

size_t RoundUp(size_t size, size_t step) { return (size + step - 1) / step * step; }

IntegerType TypeOfActivations(const Tensor& q) {
  return q.type == ort::kInt8 ? kInt8Type : q.type == ort::kInt16 ? kInt16Type : kFloatType;
}

}  // namespace

Activations FpLinearBase::RowsOf(const Call& call, size_t first, size_t count) const {
  const uint8_t* data = call.q.As<uint8_t>() + first * linear_.k * TypeSize(call.q.type);
  const PackedWeights& weights = *call.weights;
  return {data,      TypeOfActivations(call.q), count,
          linear_.k, weights.group_size(),      weights.multiplier_group()};
}

FpLinearBase::Cut FpLinearBase::CutCall(const Call& call) const {
  const LinearKernel& kernel = *chosen_.kernel;
  const size_t rows = call.q.Rows();
  const size_t panels = call.weights->panel_count();
  const size_t row_bytes = kernel.staged_bytes(RowsOf(call, 0, 1));
  // As many rows as a kernel takes and the stage holds, in whole steps of the kernel if possible.
  size_t most = std::min(kMaxTileRows, std::max(size_t{1}, kStackBytes / row_bytes));
  if (most > kernel.row_step) most -= most % kernel.row_step;
  Cut cut = {};
  cut.row_tiles = (rows + most - 1) / most;
  cut.tile_rows = (rows + cut.row_tiles - 1) / cut.row_tiles;
  if (cut.tile_rows > kernel.row_step) {
    const size_t steps = (cut.tile_rows + kernel.row_step - 1) / kernel.row_step;
    cut.tile_rows = std::min(most, steps * kernel.row_step);
    cut.row_tiles = (rows + cut.tile_rows - 1) / cut.tile_rows;
  }
  const size_t products = cut.tile_rows * kernel.layout.panel_width * linear_.k;
  cut.task_panels = kTaskProducts / products + 1;
  if (cut.row_tiles * panels / cut.task_panels < kEnoughTasks) {
    cut.task_panels =
        std::max(kPieceProducts / products + 1, cut.row_tiles * panels / kEnoughTasks);
  }
  cut.task_panels = std::min(panels, cut.task_panels);
  cut.panel_ranges = (panels + cut.task_panels - 1) / cut.task_panels;
  return cut;
}

FpLinearBase::StagedRows FpLinearBase::Stage(const Call& call, size_t first, size_t count,
                                             uint8_t* staged) const {
  return {staged, first, count, chosen_.kernel->stage(RowsOf(call, first, count), staged)};
}

void FpLinearBase::RunTile(const Call& call, const StagedRows& rows, size_t panel, uint8_t* scratch,
                           const void* decoded) const {
  LinearTile tile = {};
  call.weights->SetPanel(panel, scratch, &tile);
  tile.staged = rows.data;
  tile.decoded = decoded;
  tile.scale = call.scale.As<float>() + rows.first * call.scale_stride;
  tile.scale_stride = call.scale_stride;
  tile.plain = linear_.multiplied;
  if (linear_.act_group < linear_.k) {
    tile.act_scale = tile.scale;
    tile.act_stride = call.scale_stride;
  }
  tile.max_act = rows.max_act;
  tile.y = call.y + rows.first * call.n + panel * chosen_.kernel->layout.panel_width;
  tile.y_stride = call.n;
  tile.rows = rows.count;
  chosen_.kernel->run(tile);
}

void FpLinearBase::RunTask(const Call& call, const Cut& cut, size_t task, uint8_t* staged,
                           uint8_t* scratch) const {
  const size_t row = task / cut.panel_ranges * cut.tile_rows;
  const StagedRows rows = Stage(call, row, std::min(cut.tile_rows, call.q.Rows() - row), staged);
  const size_t first = task % cut.panel_ranges * cut.task_panels;
  const size_t last = std::min(first + cut.task_panels, call.weights->panel_count());
  for (size_t panel = first; panel < last; ++panel) RunTile(call, rows, panel, scratch, nullptr);
}

// Whether there are rows enough, and a decoded panel fits the stack.
bool FpLinearBase::DecodesOnce(const Call& call) const {
  LinearTile tile = {};
  call.weights->SetPanel(0, nullptr, &tile);
  return call.q.Rows() > kMaxTileRows && chosen_.kernel->decoded_bytes(tile) <= kStackBytes;
}

// Rows [first, first + count); `memory` has room for them, staged.
OrtStatus* FpLinearBase::RunDecoded(OrtKernelContext* context, const Call& call, size_t first,
                                    size_t count, uint8_t* memory) const {
  const LinearKernel& kernel = *chosen_.kernel;
  const size_t rows = kMaxTileRows - kMaxTileRows % kernel.row_step;
  const size_t tiles = (count + rows - 1) / rows;
  const size_t bytes = RoundUp(kernel.staged_bytes(RowsOf(call, 0, rows)), 64);
  auto* const staged = reinterpret_cast<StagedRows*>(memory);
  uint8_t* const data = memory + RoundUp(tiles * sizeof(StagedRows), 64);
  const auto stage = [&](size_t begin, size_t end) {
    for (size_t t = begin; t < end; ++t) {
      const size_t row = t * rows;
      staged[t] = Stage(call, first + row, std::min(rows, count - row), data + t * bytes);
    }
  };
  FP4DIT_RETURN_IF_ERROR(ParallelFor(linear_.node.api, context, tiles, 1, stage));
  const size_t panels = call.weights->panel_count();
  const size_t ranges = std::min(tiles, (kEnoughTasks + panels - 1) / panels);
  std::atomic<bool> failed{false};
  const auto run = [&](size_t begin, size_t end) {
    alignas(64) uint8_t decoded[kStackBytes];
    const Scratch scratch(*call.weights, &failed);
    if (failed) return;
    for (size_t task = begin; task < end; ++task) {
      const size_t panel = task / ranges;
      const size_t range = task % ranges;
      LinearTile tile = {};
      call.weights->SetPanel(panel, scratch.data(), &tile);
      kernel.decode(tile, decoded);
      for (size_t t = tiles * range / ranges; t < tiles * (range + 1) / ranges; ++t) {
        RunTile(call, staged[t], panel, nullptr, decoded);
      }
    }
  };
  FP4DIT_RETURN_IF_ERROR(ParallelFor(linear_.node.api, context, panels * ranges, 1, run));
  return failed ? NoMemory() : nullptr;
}

OrtStatus* FpLinearBase::NoMemory() const {
  return linear_.node.Fail("there is no memory to lay out a panel of its weights");
}

OrtStatus* FpLinearBase::Run(OrtKernelContext* context, const Call& call) const {
  const LinearKernel& kernel = *chosen_.kernel;
  if (DecodesOnce(call)) {
    const size_t tile_rows = kMaxTileRows - kMaxTileRows % kernel.row_step;
    const size_t tile_bytes = kernel.staged_bytes(RowsOf(call, 0, tile_rows)) + 192;
    const size_t tiles = std::max(size_t{1}, kBandBytes / tile_bytes);
    const size_t band = std::min(call.q.Rows(), tiles * tile_rows);
    KeptBuffer memory((band + tile_rows - 1) / tile_rows * tile_bytes);
    for (size_t row = 0; row < call.q.Rows() && memory.data() != nullptr; row += band) {
      const size_t rows = std::min(band, call.q.Rows() - row);
      FP4DIT_RETURN_IF_ERROR(RunDecoded(context, call, row, rows, memory.data()));
    }
    if (memory.data() != nullptr) return nullptr;
  }
  const Cut cut = CutCall(call);
  const size_t tasks = cut.row_tiles * cut.panel_ranges;
  const size_t bytes = kernel.staged_bytes(RowsOf(call, 0, cut.tile_rows));
  std::atomic<bool> failed{false};
  if (bytes > kStackBytes) {  // one row that is longer than any layer's
    AlignedBuffer staged;
    if (!staged.Allocate(bytes))
      return linear_.node.Fail("there is no memory for a row of K = %zu", linear_.k);
    const Scratch scratch(*call.weights, &failed);
    for (size_t task = 0; task < tasks && !failed; ++task) {
      RunTask(call, cut, task, staged.data(), scratch.data());
    }
    return failed ? NoMemory() : nullptr;
  }
  const auto run = [&](size_t begin, size_t end) {
    alignas(64) uint8_t staged[kStackBytes];
    const Scratch scratch(*call.weights, &failed);
    for (size_t task = begin; task < end && !failed; ++task) {
      RunTask(call, cut, task, staged, scratch.data());
    }
  };
  FP4DIT_RETURN_IF_ERROR(ParallelFor(linear_.node.api, context, tasks, 1, run));
  return failed ? NoMemory() : nullptr;
}

}  // namespace fp4dit
