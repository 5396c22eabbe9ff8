// A libcuda.so.1 for machines without a GPU: one device, whose kernels are emulated. Its memory is
// pages that only copies and kernels may touch, so that a host that reads it dies; it ends near a
// page that nobody may touch, and is aligned to no more than is promised.
//
// The environment says what it pretends: FAKE_CUDA_DEVICES (1), FAKE_CUDA_ARCH (80),
// FAKE_CUDA_BYTES of memory (2^32), FAKE_CUDA_LOAD, the result of loading a module (0),
// FAKE_CUDA_SEED of the order of threads (1), FAKE_CUDA_CAPTURING, the status of a stream (0),
// FAKE_CUDA_TRACE, a file to which calls are written.

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "gpu/emulation/emulate.h"

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidValue = 1;
constexpr int kOutOfMemory = 2;
constexpr int kNoDevice = 100;
constexpr int kInvalidImage = 200;
constexpr int kNotFound = 500;
constexpr int kLaunchFailed = 719;
constexpr int kCapturing = 900;  // what may not be done while launches are recorded
constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;
constexpr unsigned char kGarbage = 0xA5;

long Setting(const char* name, long otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtol(text, nullptr, 10);
}

struct Region {
  uint8_t* pages;
  size_t size;  // of those that may be touched; one follows
  uint8_t* data;
  Region* next;
};
Region* regions = nullptr;
size_t allocated = 0;
int opened = 0;

void Protect(int access) {
  for (const Region* r = regions; r != nullptr; r = r->next) mprotect(r->pages, r->size, access);
}

// While one lives, device memory can be touched.
struct Opened {
  Opened() {
    if (opened++ == 0) Protect(PROT_READ | PROT_WRITE);
  }
  ~Opened() {
    if (--opened == 0) Protect(PROT_NONE);
  }
};

// Launches that are recorded rather than run, until they are replayed. There is one such graph.
struct Recorded {
  const char* kernel;
  unsigned blocks, threads, shared_bytes;
  uint8_t argument[256];
};
std::vector<Recorded> recorded;
bool recording = false;

int Emulate(const char* kernel, unsigned blocks, unsigned threads, unsigned shared_bytes,
            void* argument) {
  const Opened open;
  const auto seed = static_cast<uint32_t>(Setting("FAKE_CUDA_SEED", 1));
  const char* const error = fp4dit_emulate(kernel, blocks, threads, shared_bytes, &argument, seed);
  if (error == nullptr) return kSuccess;
  std::fprintf(stderr, "%s: %s\n", kernel, error);
  return kLaunchFailed;
}

size_t TotalBytes() { return static_cast<size_t>(Setting("FAKE_CUDA_BYTES", 1l << 32)); }

}  // namespace

extern "C" {

void fake_cuda_note(const char* what) {
  const char* const file = std::getenv("FAKE_CUDA_TRACE");
  if (file == nullptr) return;
  std::FILE* const trace = std::fopen(file, "a");
  if (trace == nullptr) return;
  std::fprintf(trace, "%s\n", what);
  std::fclose(trace);
}

void* fake_cuda_allocate(size_t size) {
  const size_t taken = (size + kAlignment - 1) / kAlignment * kAlignment;
  const size_t whole = (taken + kAlignment + kPage - 1) / kPage * kPage;
  if (whole > TotalBytes() || allocated > TotalBytes() - whole) return nullptr;
  void* const found =
      mmap(nullptr, whole + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  auto* const pages = static_cast<uint8_t*>(found);
  size_t start = whole - taken;
  if (start % (2 * kAlignment) == 0) start -= kAlignment;
  std::memset(pages + start, kGarbage, size);
  regions = new Region{pages, whole, pages + start, regions};
  allocated += whole;
  mprotect(pages + whole, kPage, PROT_NONE);
  if (opened == 0) mprotect(pages, whole, PROT_NONE);
  return pages + start;
}

int fake_cuda_free(void* data) {
  for (Region** at = &regions; *at != nullptr; at = &(*at)->next) {
    Region* const region = *at;
    if (region->data != data) continue;
    *at = region->next;
    munmap(region->pages, region->size + kPage);
    allocated -= region->size;
    delete region;
    return kSuccess;
  }
  return data == nullptr ? kSuccess : kInvalidValue;
}

void fake_cuda_copy(void* to, const void* from, size_t size) {
  const Opened open;
  std::memmove(to, from, size);
}

void fake_cuda_set(void* to, int value, size_t size) {
  const Opened open;
  std::memset(to, value, size);
}

void fake_cuda_record(int on) {
  recording = on != 0;
  if (recording) recorded.clear();
}
int fake_cuda_recording() { return recording ? 1 : 0; }
int fake_cuda_replay() {
  fake_cuda_note("replay");
  for (Recorded& r : recorded) {
    const int result = Emulate(r.kernel, r.blocks, r.threads, r.shared_bytes, r.argument);
    if (result != kSuccess) return result;
  }
  return kSuccess;
}

int cuInit(unsigned) { return Setting("FAKE_CUDA_DEVICES", 1) == 0 ? kNoDevice : kSuccess; }
int cuGetErrorName(int result, const char** name) {
  *name = result == kSuccess ? "CUDA_SUCCESS" : "CUDA_ERROR_PRETENDED";
  return kSuccess;
}
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}
int cuDeviceGetCount(int* count) {
  *count = static_cast<int>(Setting("FAKE_CUDA_DEVICES", 1));
  return kSuccess;
}
int cuDeviceGet(int* device, int index) {
  *device = index;
  return kSuccess;
}
int cuDeviceGetName(char* name, int size, int) {
  std::snprintf(name, static_cast<size_t>(size), "pretended");
  return kSuccess;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  const int arch = static_cast<int>(Setting("FAKE_CUDA_ARCH", 80));
  *value = attribute == 75   ? arch / 10
           : attribute == 76 ? arch % 10
           : attribute == 97 ? 101376
           : attribute == 16 ? 4
                             : 0;
  return kSuccess;
}

// One context; it is current once it has been retained.
static char the_context;
static void* current = nullptr;
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &the_context;
  return kSuccess;
}
int cuCtxGetCurrent(void** context) {
  *context = current;
  return kSuccess;
}
int cuCtxSetCurrent(void* context) {
  current = context;
  return kSuccess;
}
int cuCtxPushCurrent_v2(void*) { return kSuccess; }
int cuCtxPopCurrent_v2(void** context) { return cuCtxGetCurrent(context); }
int cuCtxGetDevice(int* device) { return cuDeviceGet(device, 0); }
int cuCtxSynchronize() { return recording ? kCapturing : kSuccess; }

// Machine code is an ELF file, and PTX begins with its version; a test's says for which GPU it is.
int cuModuleLoadData(void** module, const void* image) {
  *module = &the_context;
  const auto* const text = static_cast<const char*>(image);
  const long result = Setting("FAKE_CUDA_LOAD", kSuccess);
  if (result != kSuccess) return static_cast<int>(result);
  const bool real =
      std::memcmp(text, "\177ELF", 4) == 0 || std::strstr(text, ".version") != nullptr;
  return real || std::strncmp(text, "image of a test", 15) == 0 ? kSuccess : kInvalidImage;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
  *function = const_cast<char*>(fp4dit_emulated_kernel(name));
  return *function == nullptr ? kNotFound : kSuccess;
}
int cuFuncSetAttribute(void*, int, int) { return kSuccess; }

int cuMemGetInfo_v2(size_t* free, size_t* total) {
  *total = TotalBytes();
  *free = *total - allocated;
  return kSuccess;
}
int cuMemAlloc_v2(void** data, size_t size) {
  if (recording) return kCapturing;
  fake_cuda_note("allocate");
  *data = fake_cuda_allocate(size);
  return *data == nullptr ? kOutOfMemory : kSuccess;
}
int cuMemFree_v2(void* data) { return recording ? kCapturing : fake_cuda_free(data); }
int cuMemcpyHtoD_v2(void* to, const void* from, size_t size) {
  if (recording) return kCapturing;
  fake_cuda_copy(to, from, size);
  return kSuccess;
}
int cuStreamIsCapturing(void*, int* status) {
  *status = recording ? 1 : static_cast<int>(Setting("FAKE_CUDA_CAPTURING", 0));
  return kSuccess;
}
int cuLaunchKernel(void* function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned,
                   unsigned, unsigned shared_bytes, void*, void** parameters, void**) {
  const auto* const name = static_cast<const char*>(function);
  fake_cuda_note(recording ? "record" : name);
  if (recording) {
    recorded.push_back({name, blocks, threads, shared_bytes, {}});
    std::memcpy(recorded.back().argument, parameters[0], sizeof(recorded.back().argument));
    return kSuccess;
  }
  return Emulate(name, blocks, threads, shared_bytes, parameters[0]);
}

// The CUDA provider links it.
int cuTensorMapEncodeTiled() { return kNotFound; }

}  // extern "C"
