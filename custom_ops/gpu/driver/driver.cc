#include "gpu/driver/driver.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/shared_library.h"
#include "gpu/driver/image.h"
#include "gpu/driver/lzma.h"

#if defined(_WIN32)
#define FP4DIT_CUDA_CALL __stdcall
#else
#define FP4DIT_CUDA_CALL
#endif

namespace fp4dit::gpu {
namespace {

#if defined(_WIN32)
constexpr const char kDriverFile[] = "nvcuda.dll";
#else
constexpr const char kDriverFile[] = "libcuda.so.1";
#endif

// Results of the driver that have a cure of their own.
constexpr int kSuccess = 0;
constexpr int kOutOfMemory = 2;
constexpr int kNoDevice = 100;

enum DeviceAttribute : int { kProcessors = 16, kMajor = 75, kMinor = 76, kMostSharedBytes = 97 };
constexpr int kFunctionSharedBytes = 8;  // a function's limit of dynamic shared memory

// X(name, symbol, parameters) of the functions of libcuda.so.1; all return a CUresult.
#define FP4DIT_CUDA_FUNCTIONS(X)                                                                 \
  X(Init, "cuInit", (unsigned))                                                                  \
  X(GetErrorName, "cuGetErrorName", (int, const char**))                                         \
  X(GetVersion, "cuDriverGetVersion", (int*))                                                    \
  X(GetDeviceCount, "cuDeviceGetCount", (int*))                                                  \
  X(GetDevice, "cuDeviceGet", (int*, int))                                                       \
  X(GetName, "cuDeviceGetName", (char*, int, int))                                               \
  X(GetAttribute, "cuDeviceGetAttribute", (int*, int, int))                                      \
  X(RetainPrimary, "cuDevicePrimaryCtxRetain", (void**, int))                                    \
  X(GetContext, "cuCtxGetCurrent", (void**))                                                     \
  X(SetContext, "cuCtxSetCurrent", (void*))                                                      \
  X(PushContext, "cuCtxPushCurrent_v2", (void*))                                                 \
  X(PopContext, "cuCtxPopCurrent_v2", (void**))                                                  \
  X(GetContextDevice, "cuCtxGetDevice", (int*))                                                  \
  X(Synchronize, "cuCtxSynchronize", ())                                                         \
  X(LoadModule, "cuModuleLoadData", (void**, const void*))                                       \
  X(GetFunction, "cuModuleGetFunction", (void**, void*, const char*))                            \
  X(SetAttribute, "cuFuncSetAttribute", (void*, int, int))                                       \
  X(GetMemory, "cuMemGetInfo_v2", (size_t*, size_t*))                                            \
  X(Allocate, "cuMemAlloc_v2", (void**, size_t))                                                 \
  X(Free, "cuMemFree_v2", (void*))                                                               \
  X(CopyToDevice, "cuMemcpyHtoD_v2", (void*, const void*, size_t))                               \
  X(IsCapturing, "cuStreamIsCapturing", (void*, int*))                                           \
  X(Launch, "cuLaunchKernel",                                                                    \
    (void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, \
     void**))

struct Driver {
  const char* missing = nullptr;  // a function that it lacks, or its file
  int initialized = kSuccess;
#define FP4DIT_FIELD(name, symbol, parameters) int(FP4DIT_CUDA_CALL * name) parameters = nullptr;
  FP4DIT_CUDA_FUNCTIONS(FP4DIT_FIELD)
#undef FP4DIT_FIELD

  Driver() {
    void* const library = OpenSystemLibrary(kDriverFile);
    if (library == nullptr) {
      missing = kDriverFile;
      return;
    }
#define FP4DIT_FIND(name, symbol, parameters)                           \
  name = reinterpret_cast<decltype(name)>(FindSymbol(library, symbol)); \
  if (name == nullptr) missing = symbol;
    FP4DIT_CUDA_FUNCTIONS(FP4DIT_FIND)
#undef FP4DIT_FIND
    if (missing == nullptr) initialized = Init(0);
  }
};

const Driver& TheDriver() {
  static const Driver driver;
  return driver;
}

constexpr const char* kKernels[] = {
#define FP4DIT_GPU_KERNEL(name, Arguments) #name,
#include "gpu/kernels.inc"
#undef FP4DIT_GPU_KERNEL
};
constexpr size_t kKernelCount = sizeof(kKernels) / sizeof(kKernels[0]);

// "CUDA_ERROR_NO_DEVICE", for messages.
const char* NameOf(int result) {
  const char* name = nullptr;
  if (TheDriver().GetErrorName(result, &name) != kSuccess || name == nullptr) return "unknown";
  return name;
}

OrtStatus* Failed(const Node& node, const char* function, int result) {
  return node.Fail(
      "%s of the NVIDIA driver failed with %s (%d): see what nvidia-smi and the system's log say "
      "of "
      "the GPU, or use the CPU provider",
      function, NameOf(result), result);
}

OrtStatus* CheckDriver(const Node& node) {
  const Driver& driver = TheDriver();
  if (driver.missing == kDriverFile) {
    return node.Fail(
        "there is no NVIDIA driver (%s): install one for CUDA 12 or newer, or use the CPU provider",
        kDriverFile);
  }
  if (driver.missing != nullptr) {
    return node.Fail("the NVIDIA driver has no %s: install one for CUDA 12 or newer",
                     driver.missing);
  }
  if (driver.initialized == kNoDevice) {
    return node.Fail(
        "the NVIDIA driver finds no GPU: see nvidia-smi and the environment's "
        "CUDA_VISIBLE_DEVICES, or use the CPU provider");
  }
  return driver.initialized == kSuccess ? nullptr : Failed(node, "cuInit", driver.initialized);
}

}  // namespace

struct Device {
  void* context = nullptr;
  int arch = 0;
  int most_shared = 0;
  int processors = 0;
  char name[96] = "";
  void* functions[kKernelCount] = {};
  Device* next = nullptr;
};

namespace {

std::atomic<Device*> devices{nullptr};

// Where no context is current, the only device's.
OrtStatus* CurrentContext(const Node& node, void** context) {
  const Driver& driver = TheDriver();
  int result = driver.GetContext(context);
  if (result != kSuccess) return Failed(node, "cuCtxGetCurrent", result);
  if (*context != nullptr) return nullptr;
  int count = 0;
  result = driver.GetDeviceCount(&count);
  if (result != kSuccess) return Failed(node, "cuDeviceGetCount", result);
  if (count != 1) {
    return node.Fail(
        "%d GPUs, and the provider has made none of them current: name one in the environment's "
        "CUDA_VISIBLE_DEVICES",
        count);
  }
  int device = 0;
  result = driver.GetDevice(&device, 0);
  if (result == kSuccess) result = driver.RetainPrimary(context, device);
  if (result == kSuccess) result = driver.SetContext(*context);
  return result == kSuccess ? nullptr : Failed(node, "cuDevicePrimaryCtxRetain", result);
}

OrtStatus* ReadDevice(const Node& node, Device* device) {
  const Driver& driver = TheDriver();
  int id = 0;
  int major = 0;
  int minor = 0;
  int result = driver.GetContextDevice(&id);
  if (result == kSuccess) result = driver.GetName(device->name, sizeof(device->name), id);
  if (result == kSuccess) result = driver.GetAttribute(&major, kMajor, id);
  if (result == kSuccess) result = driver.GetAttribute(&minor, kMinor, id);
  if (result == kSuccess) {
    result = driver.GetAttribute(&device->most_shared, kMostSharedBytes, id);
  }
  if (result == kSuccess) result = driver.GetAttribute(&device->processors, kProcessors, id);
  device->name[sizeof(device->name) - 1] = '\0';
  device->arch = major * 10 + minor;
  return result == kSuccess ? nullptr : Failed(node, "cuDeviceGetAttribute", result);
}

OrtStatus* LoadImage(const Node& node, const Device& device, const Images& images,
                     const Image& image, void** module) {
  const Stream& stream = image.stream;
  auto* const loaded = static_cast<uint8_t*>(std::malloc(stream.loaded + 1));
  if (loaded == nullptr) return node.Fail("there is no memory for the GPU's kernels");
  const bool whole = image.at <= stream.loaded && image.size <= stream.loaded - image.at &&
                     Decompress(images.data + stream.offset, stream.stored, loaded, stream.loaded);
  int result = kSuccess;
  if (whole) {
    std::memmove(loaded, loaded + image.at, image.size);
    loaded[image.size] = 0;  // PTX is text
    result = TheDriver().LoadModule(module, loaded);
  }
  std::free(loaded);
  if (!whole) return node.Fail("the library's GPU kernels are damaged: install it again");
  if (result == kSuccess) return nullptr;
  int version = 0;
  TheDriver().GetVersion(&version);
  return node.Fail(
      "the NVIDIA driver, for CUDA %d.%d, cannot load %s's kernels for sm_%d on '%s', sm_%d (%s): "
      "install a newer driver",
      version / 1000, version % 1000 / 10, image.file, image.arch, device.name, device.arch,
      NameOf(result));
}

// The functions of one module that kernels.inc has.
OrtStatus* FindFunctions(const Node& node, void* module, Device* device) {
  const Driver& driver = TheDriver();
  for (size_t i = 0; i < kKernelCount; ++i) {
    if (device->functions[i] != nullptr) continue;
    if (driver.GetFunction(&device->functions[i], module, kKernels[i]) != kSuccess) {
      device->functions[i] = nullptr;  // another module's
      continue;
    }
    const int result =
        driver.SetAttribute(device->functions[i], kFunctionSharedBytes, device->most_shared);
    if (result != kSuccess) return Failed(node, "cuFuncSetAttribute", result);
  }
  return nullptr;
}

OrtStatus* LoadKernels(const Node& node, Device* device) {
  const Images images = EmbeddedImages();
  if (images.count == 0) {
    return node.Fail(
        "this library was built without GPU kernels: install a released wheel, or run  "
        "python tools/build_gpu.py  in the project's folder and install again");
  }
  int oldest = images.all[0].arch;
  for (size_t i = 0; i < images.count; ++i) {
    if (images.all[i].arch < oldest) oldest = images.all[i].arch;
  }
  for (size_t i = 0; i < images.count; ++i) {
    const char* const file = images.all[i].file;
    if (i > 0 && std::strcmp(images.all[i - 1].file, file) == 0) continue;
    const Image* const image = ChooseImage(images, file, device->arch);
    if (image == nullptr) {
      return node.Fail(
          "the GPU '%s' has compute capability %d.%d, and the kernels are for %d.%d and newer: use "
          "another GPU, or the CPU provider",
          device->name, device->arch / 10, device->arch % 10, oldest / 10, oldest % 10);
    }
    void* module = nullptr;
    FP4DIT_RETURN_IF_ERROR(LoadImage(node, *device, images, *image, &module));
    FP4DIT_RETURN_IF_ERROR(FindFunctions(node, module, device));
  }
  for (size_t i = 0; i < kKernelCount; ++i) {
    if (device->functions[i] != nullptr) continue;
    return node.Fail(
        "the library's GPU kernels lack %s: run  python tools/build_gpu.py  in the project's "
        "folder and install again",
        kKernels[i]);
  }
  return nullptr;
}

OrtStatus* OutOfMemory(const Node& node, size_t size) {
  size_t free = 0;
  size_t total = 0;
  TheDriver().GetMemory(&free, &total);
  constexpr double kMega = 1e6;
  return node.Fail(
      "%.1f MB of GPU memory are not to be had, %.1f of %.1f MB are free: close what else uses the "
      "GPU, or use the CPU provider",
      static_cast<double>(size) / kMega, static_cast<double>(free) / kMega,
      static_cast<double>(total) / kMega);
}

}  // namespace

OrtStatus* FindDevice(const Node& node, const Device** device) {
  FP4DIT_RETURN_IF_ERROR(CheckDriver(node));
  void* context = nullptr;
  FP4DIT_RETURN_IF_ERROR(CurrentContext(node, &context));
  Device* head = devices.load(std::memory_order_acquire);
  for (Device* d = head; d != nullptr; d = d->next) {
    if (d->context != context) continue;
    *device = d;
    return nullptr;
  }
  auto* const made = new (std::nothrow) Device;
  if (made == nullptr) return node.Fail("there is no memory for the GPU's kernels");
  made->context = context;
  OrtStatus* status = ReadDevice(node, made);
  if (status == nullptr) status = LoadKernels(node, made);
  if (status != nullptr) {
    delete made;
    return status;
  }
  // Two threads may both get here; then there are two entries, and both stay valid.
  made->next = head;
  while (!devices.compare_exchange_weak(made->next, made, std::memory_order_acq_rel)) {
  }
  *device = made;
  return nullptr;
}

size_t MostSharedBytes(const Device& device) { return static_cast<size_t>(device.most_shared); }
size_t Processors(const Device& device) { return static_cast<size_t>(device.processors); }
int Arch(const Device& device) { return device.arch; }

OrtStatus* StreamOf(const Node& node, OrtKernelContext* context, void** stream) {
  return node.api->KernelContext_GetGPUComputeStream()(context, stream);
}

bool IsCaptured(void* stream) {
  int status = 0;
  return TheDriver().IsCapturing(stream, &status) != kSuccess || status != 0;
}

OrtStatus* Finish(const Node& node) {
  const int result = TheDriver().Synchronize();
  return result == kSuccess ? nullptr : Failed(node, "cuCtxSynchronize", result);
}

OrtStatus* Run(const Node& node, const Device& device, const Launch& launch,
               OrtKernelContext* context) {
  if (launch.blocks == 0) return nullptr;
  void* stream = nullptr;
  FP4DIT_RETURN_IF_ERROR(StreamOf(node, context, &stream));
  for (size_t i = 0; i < kKernelCount; ++i) {
    if (std::strcmp(kKernels[i], launch.kernel) != 0) continue;
    void* parameters[] = {const_cast<uint8_t*>(launch.argument)};
    const int result = TheDriver().Launch(device.functions[i], launch.blocks, 1, 1, launch.threads,
                                          1, 1, launch.shared_bytes, stream, parameters, nullptr);
    return result == kSuccess ? nullptr : Failed(node, launch.kernel, result);
  }
  return node.Fail("there is no GPU kernel %s", launch.kernel);
}

DeviceMemory::~DeviceMemory() {
  if (data_ == nullptr) return;
  const Driver& driver = TheDriver();
  // Sessions may end on a thread that has no context, or another's.
  if (driver.PushContext(device_->context) != kSuccess) return;  // the process ends
  driver.Free(data_);
  void* context = nullptr;
  driver.PopContext(&context);
}

int DeviceMemory::Take(const Device& device, size_t size) {
  const Driver& driver = TheDriver();
  if (data_ != nullptr) driver.Free(data_);
  data_ = nullptr;
  device_ = &device;
  return driver.Allocate(&data_, size);
}

bool DeviceMemory::TryAllocate(const Device& device, size_t size) {
  return Take(device, size) == kSuccess;
}

OrtStatus* DeviceMemory::Allocate(const Node& node, const Device& device, size_t size) {
  const int result = Take(device, size);
  if (result == kOutOfMemory) return OutOfMemory(node, size);
  return result == kSuccess ? nullptr : Failed(node, "cuMemAlloc", result);
}

OrtStatus* DeviceMemory::Fill(const Node& node, const Device& device, const void* from,
                              size_t size) {
  FP4DIT_RETURN_IF_ERROR(Allocate(node, device, size));
  const Driver& driver = TheDriver();
  int result = driver.CopyToDevice(data_, from, size);
  // The copy may still be under way, and the provider's stream does not wait for it.
  if (result == kSuccess) result = driver.Synchronize();
  return result == kSuccess ? nullptr : Failed(node, "cuMemcpyHtoD", result);
}

}  // namespace fp4dit::gpu
