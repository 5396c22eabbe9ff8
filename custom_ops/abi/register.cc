// What the library exports: RegisterCustomOps for the runtime, fp4dit_* for Python's ctypes.

#include <atomic>
#include <cstdio>
#include <new>

#include "abi/custom_op.h"
#include "core/counters.h"
#include "cpu/kernels/registry.h"
#include "gpu/driver/image.h"

#if defined(_WIN32)
#define FP4DIT_EXPORT extern "C" __declspec(dllexport)
#else
#define FP4DIT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if !defined(FP4DIT_VERSION)
#error "FP4DIT_VERSION is the package's version, given by CMakeLists.txt"
#endif

namespace fp4dit {

#define FP4DIT_OP(name) void Fill##name(const ort::Api* api, RegisteredOp* op);
#include "ops/ops.inc"
#undef FP4DIT_OP
#define FP4DIT_GPU_OP(name) \
  void FillGpu##name(const ort::Api* api, const char* provider, RegisteredOp* op);
#include "gpu/ops/ops.inc"
#undef FP4DIT_GPU_OP

namespace {

constexpr const char* kDomain = "com.fp4dit";

constexpr void (*kFillOps[])(const ort::Api*, RegisteredOp*) = {
#define FP4DIT_OP(name) Fill##name,
#include "ops/ops.inc"
#undef FP4DIT_OP
};
constexpr size_t kOpCount = sizeof(kFillOps) / sizeof(kFillOps[0]);

constexpr void (*kFillGpuOps[])(const ort::Api*, const char*, RegisteredOp*) = {
#define FP4DIT_GPU_OP(name) FillGpu##name,
#include "gpu/ops/ops.inc"
#undef FP4DIT_GPU_OP
};
constexpr size_t kGpuOpCount = sizeof(kFillGpuOps) / sizeof(kFillGpuOps[0]);
// The CUDA provider, and what it calls itself as a plugin.
constexpr const char* kGpuProviders[] = {"CUDAExecutionProvider", "CudaPluginExecutionProvider"};
constexpr size_t kGpuProviderCount = sizeof(kGpuProviders) / sizeof(kGpuProviders[0]);

// The ops as one runtime knows them. They must outlive its sessions, which no call tells the end
// of, so they live as long as the process; a second registration finds the first one's.
struct Registration {
  const ort::Api* api;
  OrtCustomOpDomain* domain;
  RegisteredOp ops[kOpCount];
  RegisteredOp gpu_ops[kGpuProviderCount][kGpuOpCount];
  Registration* next;
};

std::atomic<Registration*> registrations{nullptr};

Registration* FindRegistration(const ort::Api* api) {
  Registration* r = registrations.load(std::memory_order_acquire);
  while (r != nullptr && r->api != api) r = r->next;
  return r;
}

OrtStatus* FillDomain(Registration* r) {
  const ort::Api* api = r->api;
  FP4DIT_RETURN_IF_ERROR(api->CreateCustomOpDomain()(kDomain, &r->domain));
  for (size_t i = 0; i < kOpCount; ++i) {
    kFillOps[i](api, &r->ops[i]);
    FP4DIT_RETURN_IF_ERROR(api->CustomOpDomain_Add()(r->domain, &r->ops[i]));
  }
  for (size_t p = 0; p < kGpuProviderCount; ++p) {
    for (size_t i = 0; i < kGpuOpCount; ++i) {
      kFillGpuOps[i](api, kGpuProviders[p], &r->gpu_ops[p][i]);
      FP4DIT_RETURN_IF_ERROR(api->CustomOpDomain_Add()(r->domain, &r->gpu_ops[p][i]));
    }
  }
  return nullptr;
}

OrtStatus* GetRegistration(const ort::Api* api, Registration** result) {
  *result = FindRegistration(api);
  if (*result != nullptr) return nullptr;
  Registration* made = new (std::nothrow) Registration{};
  if (made == nullptr) return api->CreateStatus()(ort::kFail, "fp4dit: there is no memory");
  made->api = api;
  OrtStatus* const status = FillDomain(made);
  if (status != nullptr) {
    if (made->domain != nullptr) api->ReleaseCustomOpDomain()(made->domain);
    delete made;
    return status;
  }
  // Two threads may both get here at the first registration; then there are two entries, and both
  // stay valid.
  made->next = registrations.load(std::memory_order_relaxed);
  while (!registrations.compare_exchange_weak(made->next, made, std::memory_order_acq_rel)) {
  }
  *result = made;
  return nullptr;
}

}  // namespace
}  // namespace fp4dit

FP4DIT_EXPORT OrtStatus* FP4DIT_ORT_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                           const fp4dit::ort::ApiBase* base) {
  using namespace fp4dit;
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    // Version 1 of the API has all that it takes to say so.
    char text[160];
    std::snprintf(text, sizeof(text),
                  "fp4dit %s needs ONNX Runtime 1.%u or newer, this is %.32s: upgrade onnxruntime",
                  FP4DIT_VERSION, static_cast<unsigned>(ort::kApiVersion),
                  base->GetVersionString());
    const ort::Api* oldest = base->GetApi(1);
    return oldest == nullptr ? nullptr : oldest->CreateStatus()(ort::kNotImplemented, text);
  }
  const Selection selection = Selected();
  if (selection.error[0] != '\0') {
    return api->CreateStatus()(ort::kInvalidArgument, selection.error);
  }
  Registration* registration = nullptr;
  FP4DIT_RETURN_IF_ERROR(GetRegistration(api, &registration));
  return api->AddCustomOpDomain()(options, registration->domain);
}

// The package's version.
FP4DIT_EXPORT const char* fp4dit_version() { return FP4DIT_VERSION; }

// The name of the instruction set in use; "" if FP4DIT_ISA names one that cannot be used.
FP4DIT_EXPORT const char* fp4dit_isa() {
  const fp4dit::Selection selection = fp4dit::Selected();
  size_t count = 0;
  return selection.error[0] != '\0' ? "" : fp4dit::AllIsas(&count)[selection.isa].name;
}

// The names of the instruction sets that can be used here, best first, comma separated.
FP4DIT_EXPORT const char* fp4dit_isas() { return fp4dit::SupportedIsas(); }

// The operators that have kernels for GPUs, comma separated; "" if the library was built without.
FP4DIT_EXPORT const char* fp4dit_gpu_operators() {
#define FP4DIT_GPU_OP(name) "," #name
  static constexpr char names[] =
#include "gpu/ops/ops.inc"
      ;
#undef FP4DIT_GPU_OP
  return fp4dit::gpu::EmbeddedImages().count == 0 ? "" : names + 1;
}

// Nodes created from now on use the instruction set called `name` (null: what the environment
// says). 0, and no change, if it cannot be used here.
FP4DIT_EXPORT int fp4dit_select_isa(const char* name) { return fp4dit::SelectIsa(name) ? 1 : 0; }

// Repeats the dot-product instruction for products of `kind` (0 int8, 1 int16, 2 float) of the
// instruction set called `isa`, on registers. Returns the number of products; 0: there is none.
FP4DIT_EXPORT double fp4dit_peak(const char* isa, int kind, size_t rounds) {
  return fp4dit::Peak(isa, kind, rounds);
}

// Kernel calls as JSON: {"FpLinear/int8/avx2": 3}. Returns the length of the whole text; writes at
// most `size` bytes, the closing zero included.
FP4DIT_EXPORT size_t fp4dit_counters_json(char* text, size_t size) {
  return fp4dit::WriteCounters(text, size);
}

FP4DIT_EXPORT void fp4dit_counters_reset() { fp4dit::ResetCounters(); }
