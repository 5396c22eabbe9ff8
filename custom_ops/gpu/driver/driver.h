// NVIDIA's driver, found when the first kernel for a GPU is created: nothing of CUDA is needed to
// build or load the library, or to run it on the CPU.

#ifndef FP4DIT_GPU_DRIVER_DRIVER_H_
#define FP4DIT_GPU_DRIVER_DRIVER_H_

#include <cstddef>

#include "core/node.h"
#include "gpu/launch.h"

namespace fp4dit::gpu {

// The kernels, loaded into the context of one device. It lives as long as the process.
struct Device;

// The device of this thread's context, which the runtime's provider has made current. Called when
// a node's kernel is created: kernels are loaded then, and not while it runs.
OrtStatus* FindDevice(const Node& node, const Device** device);

// Bytes of shared memory that a block can have.
size_t MostSharedBytes(const Device& device);

// Streaming multiprocessors, and the compute capability: 90 is 9.0.
size_t Processors(const Device& device);
int Arch(const Device& device);

// The stream that the call's work belongs to, and whether a CUDA graph is made of what is queued on
// it: then nothing may be allocated.
OrtStatus* StreamOf(const Node& node, OrtKernelContext* context, void** stream);
bool IsCaptured(void* stream);

// Queues the kernel on the stream that the call's work belongs to, if there is anything to do.
OrtStatus* Run(const Node& node, const Device& device, const Launch& launch,
               OrtKernelContext* context);

// Waits for all that was queued on the device.
OrtStatus* Finish(const Node& node);

// Bytes on a device, which are freed with it.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory();

  // Room for `size` bytes, at least one; what it held is freed.
  OrtStatus* Allocate(const Node& node, const Device& device, size_t size);
  // The same; false if there is no such memory.
  bool TryAllocate(const Device& device, size_t size);
  // Copies `size` bytes there, at least one, and waits until all has arrived; what it held is
  // freed.
  OrtStatus* Fill(const Node& node, const Device& device, const void* from, size_t size);
  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }

 private:
  int Take(const Device& device, size_t size);

  const Device* device_ = nullptr;
  void* data_ = nullptr;
};

}  // namespace fp4dit::gpu

#endif  // FP4DIT_GPU_DRIVER_DRIVER_H_
