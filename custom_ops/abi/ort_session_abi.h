// The part of ONNX Runtime's C ABI that it takes to run a model, in the manner of ort_abi.h: for
// programs, not for the library, which needs none of it.

#ifndef FP4DIT_ABI_ORT_SESSION_ABI_H_
#define FP4DIT_ABI_ORT_SESSION_ABI_H_

#include <cstddef>
#include <cstdint>

#include "abi/ort_abi.h"

struct OrtEnv;
struct OrtSession;
struct OrtRunOptions;
struct OrtMemoryInfo;
struct OrtAllocator;

namespace fp4dit::ort {

#if defined(_WIN32)
using PathChar = wchar_t;
#else
using PathChar = char;
#endif

enum LogLevel : int32_t { kLogErrors = 3, kLogFatal = 4 };
enum AllocatorKind : int32_t { kDeviceAllocator = 0 };

// Element types that models have at their edges, beside those that the operators know.
constexpr ElementType kInt32 = static_cast<ElementType>(6);
constexpr ElementType kBool = static_cast<ElementType>(9);
constexpr ElementType kDouble = static_cast<ElementType>(11);

// X(name, index in the runtime's table, result, parameters)
#define FP4DIT_ORT_SESSION_FUNCTIONS(X)                                                       \
  X(GetErrorMessage, 2, const char*, (const OrtStatus*))                                      \
  X(CreateEnv, 3, OrtStatus*, (LogLevel, const char*, OrtEnv**))                              \
  X(CreateSession, 7, OrtStatus*,                                                             \
    (const OrtEnv*, const PathChar*, const OrtSessionOptions*, OrtSession**))                 \
  X(Run, 9, OrtStatus*,                                                                       \
    (OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, size_t,   \
     const char* const*, size_t, OrtValue**))                                                 \
  X(CreateSessionOptions, 10, OrtStatus*, (OrtSessionOptions**))                              \
  X(DisableMemPattern, 17, OrtStatus*, (OrtSessionOptions*))                                  \
  X(SetIntraOpNumThreads, 24, OrtStatus*, (OrtSessionOptions*, int))                          \
  X(SessionGetInputCount, 30, OrtStatus*, (const OrtSession*, size_t*))                       \
  X(SessionGetOutputCount, 31, OrtStatus*, (const OrtSession*, size_t*))                      \
  X(SessionGetInputName, 36, OrtStatus*, (const OrtSession*, size_t, OrtAllocator*, char**))  \
  X(SessionGetOutputName, 37, OrtStatus*, (const OrtSession*, size_t, OrtAllocator*, char**)) \
  X(CreateTensorWithDataAsOrtValue, 49, OrtStatus*,                                           \
    (const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, ElementType, OrtValue**))   \
  X(IsTensor, 50, OrtStatus*, (const OrtValue*, int*))                                        \
  X(CreateCpuMemoryInfo, 69, OrtStatus*, (AllocatorKind, MemoryType, OrtMemoryInfo**))        \
  X(AllocatorFree, 76, OrtStatus*, (OrtAllocator*, void*))                                    \
  X(GetAllocatorWithDefaultOptions, 78, OrtStatus*, (OrtAllocator**))                         \
  X(ReleaseEnv, 92, void, (OrtEnv*))                                                          \
  X(ReleaseMemoryInfo, 94, void, (OrtMemoryInfo*))                                            \
  X(ReleaseSession, 95, void, (OrtSession*))                                                  \
  X(ReleaseValue, 96, void, (OrtValue*))                                                      \
  X(ReleaseSessionOptions, 100, void, (OrtSessionOptions*))                                   \
  X(AddSessionConfigEntry, 130, OrtStatus*, (OrtSessionOptions*, const char*, const char*))   \
  X(RegisterCustomOpsLibrary_V2, 228, OrtStatus*, (OrtSessionOptions*, const PathChar*))

// These functions of a table; `base()` has those of ort_abi.h.
class SessionApi {
 public:
  explicit SessionApi(const Api* api) : api_(api) {}
  const Api* base() const { return api_; }

#define FP4DIT_FUNCTION(name, index, result, parameters)                 \
  using name##Function = result(FP4DIT_ORT_CALL*) parameters;            \
  name##Function name() const {                                          \
    static_assert(index < kTableSize, "kTableSize is too small");        \
    return reinterpret_cast<name##Function>(api_->table[size_t{index}]); \
  }
  FP4DIT_ORT_SESSION_FUNCTIONS(FP4DIT_FUNCTION)
#undef FP4DIT_FUNCTION

 private:
  const Api* api_;
};

}  // namespace fp4dit::ort

#endif  // FP4DIT_ABI_ORT_SESSION_ABI_H_
