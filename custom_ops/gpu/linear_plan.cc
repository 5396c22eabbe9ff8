#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "gpu/linear.h"

namespace fp4dit::gpu {
namespace {

constexpr uint32_t kThreads = 256;
// Rows up to which a tile of 16 is worth its weights' traffic.
constexpr size_t kFewRows = 32;
constexpr size_t kFewTile = 16;
// Stages of 128 inputs from which on blocks share them where rows are few, and that each then has.
constexpr size_t kManyStages = 16;
constexpr size_t kFewestStages = 2;
// Blocks of tiles of 16 that a streaming multiprocessor is given.
constexpr size_t kBlocksOfProcessor = 2;
// Rows from which on weights are decoded once: less work does not outweigh another launch.
constexpr size_t kManyRows = 1024;

// That a thread decodes codes to.
constexpr size_t kDecodedBytes = 32;

constexpr const char* kActs[kIntegerTypes] = {"int8", "int16", "float"};
constexpr const char* kStorages[] = {"plain", "codes", "multiplied", "bytes"};

// Of kernels.inc: "fp4dit_linear" and the words, "" for none.
const char* LinearKernelName(const char* first, const char* second, const char* third) {
#define FP4DIT_GPU_KERNEL(name, Arguments) #name,
  static constexpr const char* kNames[] = {
#include "gpu/kernels.inc"
  };
#undef FP4DIT_GPU_KERNEL
  char wanted[64];
  std::snprintf(wanted, sizeof(wanted), "fp4dit_linear_%s_%s%s%s", first, second,
                *third == '\0' ? "" : "_", third);
  for (const char* name : kNames) {
    if (std::strcmp(name, wanted) == 0) return name;
  }
  return "";
}

// Whether decoding is more work than the products that wait for it. For each product of the tensor
// cores, which takes 8 cycles on sm_80 and fewer on sm_90 and sm_100, a warp that decodes issues 8
// or 9 instructions, and 3 else. Other GPUs take 16, beside which decoding is hidden.
bool HasFastProducts(const Gpu& gpu) {
  return gpu.arch == 80 || gpu.arch / 10 == 9 || gpu.arch / 10 == 10;
}

// Three stages of a block's rows.
uint32_t StagedBytes(size_t rows, IntegerType act) {
  const size_t element = act == kInt8Type ? 1 : 2;
  return static_cast<uint32_t>(3 * rows * kStageSteps * kStep * element);
}

}  // namespace

LinearWay LinearWeights::Choose(size_t rows, const Gpu& gpu) const {
  if (rows >= kManyRows && HasFastProducts(gpu)) return WayOf(kDecoded, rows, gpu);
  const bool is_long = storage_ != kPlain && Stages() >= kManyStages;
  return WayOf(rows <= kFewRows && is_long ? kShared : kDirect, rows, gpu);
}

LinearWay LinearWeights::WayOf(LinearPath path, size_t rows, const Gpu& gpu) const {
  if (path == kDecoded) return Decoded();
  const bool is_work = storage_ != kPlain && rows != 0 && n() != 0;
  return path == kShared && is_work ? Shared(rows, gpu.processors) : LinearWay();
}

size_t LinearWeights::MostScratchBytes(const Gpu& gpu) const {
  if (storage_ == kPlain) return 0;
  const size_t decoded = HasFastProducts(gpu) ? Decoded().scratch_bytes : 0;
  return decoded != 0 ? decoded : MostSumBytes();
}

LinearWay LinearWeights::Decoded() const {
  LinearWay way;
  const bool is_coded = storage_ == kCodes || storage_ == kMultiplied;
  if (act_ != kInt8Type || arguments_.several != 0 || !is_coded) return way;
  way.path = kDecoded;
  way.scratch_bytes = Stages() * kStageSteps * kStep * static_cast<size_t>(arguments_.n_padded);
  return way;
}

// Sums are written and read once: no more traffic than the weights make.
size_t LinearWeights::MostSumBytes() const {
  return (offsets_[kCodesPart + 1] - offsets_[kCodesPart]) / 2;
}

// A run that is the only one is cut anywhere, since integers may be added in any order; of several,
// whose sums are folded one after the other as floats, each is summed by one block.
LinearWay LinearWeights::Shared(size_t rows, size_t processors) const {
  const size_t stages = Stages();
  const size_t blocks = Tiles(rows, kFewTile) * static_cast<size_t>(arguments_.n_padded) / kTileN;
  const size_t sum_bytes = rows * static_cast<size_t>(arguments_.n_padded) * sizeof(int32_t);
  const size_t run_steps = static_cast<size_t>(arguments_.run_steps);
  const size_t runs = Tiles(static_cast<size_t>(arguments_.k), static_cast<size_t>(arguments_.run));
  size_t parts = Tiles(kBlocksOfProcessor * processors, blocks);
  if (runs == 1) parts = std::min(parts, MostSumBytes() / sum_bytes);
  size_t part_stages = std::max(Tiles(stages, std::max<size_t>(parts, 1)), kFewestStages);
  if (runs > 1) part_stages = RoundUp(part_stages, run_steps / std::gcd(run_steps, kStageSteps));
  parts = Tiles(stages, part_stages);
  LinearWay way;
  const size_t slots = runs == 1 ? parts : runs;
  if (parts < 2 || slots * sum_bytes > MostSumBytes()) return way;
  way.path = kShared;
  way.scratch_bytes = slots * sum_bytes;
  way.part_stages = static_cast<int32_t>(part_stages);
  return way;
}

LinearArguments LinearWeights::Arguments(const LinearCall& call) const {
  LinearArguments a = arguments_;
  a.q = call.q;
  a.scale = call.scale;
  a.y = call.y;
  a.m = static_cast<int64_t>(call.rows);
  a.scale_stride = static_cast<int64_t>(call.scale_stride);
  a.codes = call.weights + offsets_[kCodesPart];
  if (offsets_[kScalesPart] != offsets_[kMultipliersPart]) {
    a.multipliers = call.weights + offsets_[kMultipliersPart];
  }
  a.weight_scale = call.weights + offsets_[kScalesPart];
  a.bias = reinterpret_cast<const float*>(call.weights + offsets_[kBiasPart]);
  a.grid = reinterpret_cast<const float*>(call.weights + offsets_[kGridPart]);
  a.scratch = call.scratch;
  // Rows and runs of q that are whole pieces of 16 bytes are copied by them.
  const size_t piece = act_ == kInt8Type ? 16 : 8;
  const bool whole_runs = a.run == a.k || static_cast<size_t>(a.run) % piece == 0;
  a.aligned = whole_runs && static_cast<size_t>(a.k) % piece == 0 &&
                      reinterpret_cast<uintptr_t>(call.q) % 16 == 0
                  ? 1
                  : 0;
  return a;
}

Launch LinearWeights::PlanPlain(const LinearArguments& a) const {
  Launch launch;
  launch.kernel = LinearKernelName("plain", kActs[act_], "");
  launch.blocks = static_cast<uint32_t>(Tiles(static_cast<size_t>(a.m), 64) *
                                        Tiles(static_cast<size_t>(a.n), 64));
  launch.threads = kThreads;
  launch.shared_bytes = 2 * 32 * 68 * sizeof(float);
  launch.Set(a);
  return launch;
}

Launch LinearWeights::PlanFragments(const LinearArguments& a, Storage storage) const {
  const size_t m = static_cast<size_t>(a.m);
  const bool one_scale = act_ == kInt8Type && a.several == 0;
  const bool few = one_scale && m <= kFewRows;
  const size_t rows = few ? kFewTile : one_scale ? 128 : 64;
  const char* const tile = a.several != 0 ? "several" : few ? "16" : one_scale ? "128" : "64";
  Launch launch;
  launch.kernel = LinearKernelName(kActs[act_], kStorages[storage], tile);
  launch.blocks = static_cast<uint32_t>(Tiles(m, rows) * Tiles(static_cast<size_t>(a.n), kTileN));
  launch.threads = kThreads;
  launch.shared_bytes = StagedBytes(rows, act_);
  launch.Set(a);
  return launch;
}

Launch LinearWeights::PlanShared(const LinearArguments& a) const {
  Launch launch;
  launch.kernel = LinearKernelName(kActs[act_], kStorages[storage_], "shared");
  const size_t parts = Tiles(Stages(), static_cast<size_t>(a.part_stages));
  const size_t tiles = Tiles(static_cast<size_t>(a.m), kFewTile) * static_cast<size_t>(a.n_padded);
  launch.blocks = static_cast<uint32_t>(parts * tiles / kTileN);
  launch.threads = kThreads;
  launch.shared_bytes = StagedBytes(kFewTile, act_);
  launch.Set(a);
  return launch;
}

void LinearWeights::Plan(const LinearCall& call, Launch (&launches)[kMostLaunches]) const {
  LinearArguments a = Arguments(call);
  Launch& first = launches[0];
  Launch& second = launches[1];
  second = Launch();
  if (storage_ == kPlain) {
    first = PlanPlain(a);
  } else if (call.way.path == kDirect) {
    first = PlanFragments(a, storage_);
  } else if (call.way.path == kDecoded) {
    first.kernel = LinearKernelName("decode", kStorages[storage_], "");
    first.blocks = static_cast<uint32_t>(call.way.scratch_bytes / (kThreads * kDecodedBytes));
    first.threads = kThreads;
    first.shared_bytes = 0;
    first.Set(a);
    a.codes = static_cast<const uint8_t*>(call.scratch);
    second = PlanFragments(a, kBytes);
  } else {
    const bool one_run = a.run == a.k;
    a.part_stages = call.way.part_stages;
    a.slot_steps = one_run ? a.part_stages * kStageSteps : a.run_steps;
    a.run_slots =
        one_run ? static_cast<int32_t>(Tiles(Stages(), static_cast<size_t>(a.part_stages))) : 1;
    first = PlanShared(a);
    second.kernel = "fp4dit_linear_fold";
    second.blocks = static_cast<uint32_t>(call.rows * Tiles(n(), kThreads));
    second.threads = kThreads;
    second.Set(a);
  }
}

}  // namespace fp4dit::gpu
