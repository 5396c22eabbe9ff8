// How FpLinear, FpLinearInteger and FpLinearSigns run on a GPU.

#ifndef FP4DIT_GPU_LINEAR_H_
#define FP4DIT_GPU_LINEAR_H_

#include <cstddef>
#include <cstdint>

#include "cpu/kernels/kernels.h"
#include "cpu/packing/packed_weights.h"
#include "gpu/arguments.h"
#include "gpu/launch.h"

namespace fp4dit::gpu {

inline size_t Tiles(size_t size, size_t tile) { return size / tile + (size % tile != 0 ? 1 : 0); }
inline size_t RoundUp(size_t size, size_t step) { return Tiles(size, step) * step; }

// How a product is made; its bits are the same in all ways.
enum LinearPath {
  kDirect,   // one kernel
  kDecoded,  // codes are decoded to bytes once, and not by every block that reads them
  kShared,   // blocks share the inputs; their sums, which are exact, are folded by a second kernel
};
constexpr size_t kMostLaunches = 2;

// What the way depends on.
struct Gpu {
  int arch;           // 90: sm_90
  size_t processors;  // streaming multiprocessors
};

struct LinearWay {
  LinearPath path = kDirect;
  size_t scratch_bytes = 0;  // of the device's memory, beside the weights
  int32_t part_stages = 0;   // of kShared: stages of a block
};

// Rows of activations and where their products go, on the device.
struct LinearCall {
  const void* q;  // [rows, k]
  const float* scale;
  size_t scale_stride;  // of rows: 0, or the scales of one
  size_t rows;
  float* y;                // [rows, n]
  const uint8_t* weights;  // the copy of LinearWeights' bytes
  LinearWay way;
  void* scratch;  // way.scratch_bytes, aligned to 16
};

// The weights of a linear as the kernels read them: one block of bytes, to be copied once to memory
// of the device that is aligned to 256.
//
// Where the tensor cores take weights and activations, weights are fragments: of each stage of four
// steps and each eight channels, 16 bytes a lane that hold its codes of the four steps (or twice 16
// that hold bytes). Else codes are as the model has them.
class LinearWeights {
 public:
  // `source` has passed the checks of the CPU's operator; `act` is the type of activations.
  PackResult Pack(const WeightSource& source, IntegerType act);
  const uint8_t* bytes() const { return bytes_.data(); }
  size_t size() const { return size_; }
  size_t n() const { return static_cast<size_t>(arguments_.n); }
  // Once they are on the device the host needs them no more.
  void Release() { bytes_.Allocate(0); }

  // The way that suits so many rows.
  LinearWay Choose(size_t rows, const Gpu& gpu) const;
  // The way that takes `path`, or kDirect if that cannot be had.
  LinearWay WayOf(LinearPath path, size_t rows, const Gpu& gpu) const;
  // The most that `Choose` asks for.
  size_t MostScratchBytes(const Gpu& gpu) const;
  // Kernels to be queued one after the other.
  void Plan(const LinearCall& call, Launch (&launches)[kMostLaunches]) const;

 private:
  // The parts of the block, by offset.
  enum Part { kCodesPart, kMultipliersPart, kScalesPart, kBiasPart, kGridPart, kParts };

  bool ChooseFragments(const WeightSource& source);
  bool HasKernel(const WeightSource& source);
  void PackFragments(const WeightSource& source);
  void PackFragmentMultipliers(const WeightSource& source);
  void PackScales(const WeightSource& source);
  size_t Stages() const { return Tiles(static_cast<size_t>(arguments_.steps), kStageSteps); }
  size_t MostSumBytes() const;
  LinearWay Decoded() const;
  LinearWay Shared(size_t rows, size_t processors) const;
  LinearArguments Arguments(const LinearCall& call) const;
  Launch PlanPlain(const LinearArguments& a) const;
  Launch PlanFragments(const LinearArguments& a, Storage storage) const;
  Launch PlanShared(const LinearArguments& a) const;
  uint8_t* At(Part part) { return bytes_.data() + offsets_[part]; }

  AlignedBuffer bytes_;
  size_t size_ = 0;
  size_t offsets_[kParts + 1] = {};
  IntegerType act_ = kInt8Type;
  Storage storage_ = kPlain;
  LinearArguments arguments_ = {};
};

}  // namespace fp4dit::gpu

#endif  // FP4DIT_GPU_LINEAR_H_
