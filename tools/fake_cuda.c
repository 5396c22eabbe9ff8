// Bodies of CUDA 13's runtime libraries for tools/gpu_placement.py: enough for ONNX Runtime's CUDA provider
// to be created without a GPU. Memory is that of the emulated driver, libcuda.so.1; streams and events
// do nothing, and the provider's own kernels do not run. What has no body here returns 0.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void fake_cuda_note(const char* what);
void* fake_cuda_allocate(size_t size);
int fake_cuda_free(void* data);
void fake_cuda_copy(void* to, const void* from, size_t size);
void fake_cuda_set(void* to, int value, size_t size);
void fake_cuda_record(int on);
int fake_cuda_recording(void);
int fake_cuda_replay(void);

enum { kSuccess = 0, kOutOfMemory = 2, kCapturing = 900, kMajor = 8, kProcessors = 108, kVersion = 13000 };
static const size_t kTotalBytes = (size_t)8 << 30;

static int Handle(void** handle) {
  *handle = malloc(16);
  return *handle == NULL ? kOutOfMemory : kSuccess;
}

#if defined(FAKE_libcudart)
// cudaDeviceProp of CUDA 13, as far as the provider reads it.
struct Properties {
  char name[256];
  char ids[28];
  uint32_t padding;
  size_t total_bytes;
  size_t shared_bytes;
  int registers, warp_size;
  size_t pitch;
  int threads, sizes[3], grid[3];
  size_t constant_bytes;
  int major, minor;
  size_t alignments[2];
  int processors;
};
enum { kPropertiesSize = 1008 };

int cudaGetDeviceCount(int* count) {
  *count = 1;
  return kSuccess;
}
int cudaGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}
int cudaGetDeviceProperties(struct Properties* p, int device) {
  memset(p, 0, kPropertiesSize);
  strcpy(p->name, "emulated");
  p->total_bytes = kTotalBytes;
  p->shared_bytes = 49152;
  p->registers = 65536;
  p->warp_size = 32;
  p->threads = p->sizes[0] = p->sizes[1] = 1024;
  p->grid[0] = 0x7fffffff;
  p->grid[1] = p->grid[2] = 65535;
  p->major = kMajor;
  p->processors = kProcessors;
  return kSuccess;
}
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? kMajor : attribute == 16 ? kProcessors : attribute == 97 ? 101376 : 0;
  return kSuccess;
}
int cudaMalloc(void** data, size_t size) {
  if (fake_cuda_recording()) return kCapturing;
  *data = fake_cuda_allocate(size);
  return *data == NULL ? kOutOfMemory : kSuccess;
}
int cudaFree(void* data) { return fake_cuda_recording() ? kCapturing : fake_cuda_free(data); }
int cudaFreeAsync(void* data, void* stream) { return fake_cuda_free(data); }
int cudaMallocHost(void** data, size_t size) {
  return posix_memalign(data, 256, size == 0 ? 1 : size) == 0 ? kSuccess : kOutOfMemory;
}
int cudaHostAlloc(void** data, size_t size, unsigned flags) { return cudaMallocHost(data, size); }
int cudaFreeHost(void* data) {
  free(data);
  return kSuccess;
}
// Of a recorded run nothing is copied: there may be no copies in it, so none is replayed.
int cudaMemcpy(void* to, const void* from, size_t size, int kind) {
  if (fake_cuda_recording()) return kCapturing;
  fake_cuda_note("copy");
  fake_cuda_copy(to, from, size);
  return kSuccess;
}
int cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) {
  return cudaMemcpy(to, from, size, kind);
}
int cudaMemset(void* to, int value, size_t size) {
  fake_cuda_set(to, value, size);
  return kSuccess;
}
int cudaMemsetAsync(void* to, int value, size_t size, void* stream) {
  return cudaMemset(to, value, size);
}
int cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *free_bytes = *total = kTotalBytes;
  return kSuccess;
}
int cudaStreamCreate(void** stream) { return Handle(stream); }
int cudaStreamCreateWithFlags(void** stream, unsigned flags) { return Handle(stream); }
int cudaStreamDestroy(void* stream) { return cudaFreeHost(stream); }
int cudaStreamIsCapturing(void* stream, int* status) {
  *status = fake_cuda_recording();
  return kSuccess;
}
int cudaStreamBeginCapture(void* stream, int mode) {
  fake_cuda_record(1);
  return kSuccess;
}
int cudaStreamEndCapture(void* stream, void** graph) {
  fake_cuda_record(0);
  return Handle(graph);
}
int cudaGraphInstantiate(void** made, void* graph, unsigned long long flags) {
  return Handle(made);
}
int cudaGraphLaunch(void* made, void* stream) { return fake_cuda_replay(); }
int cudaGraphDestroy(void* graph) { return kSuccess; }
int cudaGraphExecDestroy(void* made) { return kSuccess; }
int cudaEventCreate(void** event) { return Handle(event); }
int cudaEventCreateWithFlags(void** event, unsigned flags) { return Handle(event); }
int cudaEventDestroy(void* event) { return cudaFreeHost(event); }
int cudaRuntimeGetVersion(int* version) {
  *version = kVersion;
  return kSuccess;
}
int cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }
const char* cudaGetErrorName(int error) { return "emulated"; }
const char* cudaGetErrorString(int error) { return "emulated"; }
void* __cudaRegisterFatBinary(void* binary) {
  static int handle;
  return &handle;
}
// Says that the launch is not to go on.
unsigned __cudaPushCallConfiguration(void) {
  fake_cuda_note("a kernel of the provider, which did not run");
  return 1;
}
#elif defined(FAKE_libcublas)
int cublasCreate_v2(void** handle) { return Handle(handle); }
#elif defined(FAKE_libcublasLt)
int cublasLtCreate(void** handle) { return Handle(handle); }
#endif
