// Memory of a device that kernels queued on one stream use one after the other: one block for all
// nodes, where it stays, so that what a CUDA graph has captured stays valid.

#ifndef FP4DIT_GPU_DRIVER_SCRATCH_H_
#define FP4DIT_GPU_DRIVER_SCRATCH_H_

#include <cstddef>

#include "core/node.h"
#include "gpu/driver/driver.h"

namespace fp4dit::gpu {

// A node's part in it.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  // Frees blocks that no other node has used.
  ~Scratch();

  // While the node is created: what a call may need. It is not allocated yet, but the first call of
  // any node allocates as much as the largest that was reserved.
  void Reserve(const Device& device, size_t size);
  // At least `size` bytes, which no other stream's kernels use. Memory is allocated in a stream's
  // first calls alone. Null if there is none: the device has too little, the stream's work is being
  // captured, or the node has run on too many streams.
  OrtStatus* Find(const Node& node, OrtKernelContext* context, size_t size, void** data) const;

 private:
  struct Block;
  struct All;
  static constexpr size_t kMostBlocks = 8;

  Block* Use(void* stream, size_t size) const;
  size_t LargestReserved(size_t size) const;

  const Device* device_ = nullptr;  // null: nothing is reserved
  size_t size_ = 0;
  Scratch* next_ = nullptr;
  mutable Block* used_[kMostBlocks] = {};  // by this node
};

}  // namespace fp4dit::gpu

#endif  // FP4DIT_GPU_DRIVER_SCRATCH_H_
