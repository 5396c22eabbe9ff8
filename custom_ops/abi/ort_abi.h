// The part of ONNX Runtime's C ABI that this library uses, declared by hand.
//
// No Python package ships ONNX Runtime's headers, and a build must not download them. The runtime
// only ever appends to its table of functions, so an index holds for every later version. Where the
// official headers are found (ORT_INCLUDE_DIR), ort_abi_check.cc compares every line below with
// them.

#ifndef FP4DIT_ABI_ORT_ABI_H_
#define FP4DIT_ABI_ORT_ABI_H_

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define FP4DIT_ORT_CALL __stdcall
#else
#define FP4DIT_ORT_CALL
#endif

// Opaque: the names are the runtime's own, so that the official headers can stand beside this one.
struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtCustomOpDomain;
struct OrtSessionOptions;
struct OrtTensorTypeAndShapeInfo;
struct OrtOpAttr;

namespace fp4dit::ort {

// The lowest version that has all functions below: ParallelFor came with 17.
constexpr uint32_t kApiVersion = 17;

enum ErrorCode : int32_t { kFail = 1, kInvalidArgument = 2, kNotImplemented = 9 };

enum ElementType : int32_t {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt16 = 5,
  kInt64 = 7,
  kFloat16 = 10,
};

enum AttributeType : int32_t { kIntAttribute = 1 };

enum Characteristic : int32_t { kRequired = 0 };

enum MemoryType : int32_t { kCpuInput = -2, kDefaultMemory = 0 };

using ParallelBody = void (*)(void* user_data, size_t index);

// X(name, index in the runtime's table, result, parameters)
#define FP4DIT_ORT_FUNCTIONS(X)                                                                  \
  X(CreateStatus, 0, OrtStatus*, (ErrorCode, const char*))                                       \
  X(CreateCustomOpDomain, 26, OrtStatus*, (const char*, OrtCustomOpDomain**))                    \
  X(CustomOpDomain_Add, 27, OrtStatus*, (OrtCustomOpDomain*, const CustomOp*))                   \
  X(AddCustomOpDomain, 28, OrtStatus*, (OrtSessionOptions*, OrtCustomOpDomain*))                 \
  X(GetTensorMutableData, 51, OrtStatus*, (OrtValue*, void**))                                   \
  X(CreateTensorTypeAndShapeInfo, 57, OrtStatus*, (OrtTensorTypeAndShapeInfo**))                 \
  X(SetTensorElementType, 58, OrtStatus*, (OrtTensorTypeAndShapeInfo*, ElementType))             \
  X(SetDimensions, 59, OrtStatus*, (OrtTensorTypeAndShapeInfo*, const int64_t*, size_t))         \
  X(GetTensorElementType, 60, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, ElementType*))      \
  X(GetDimensionsCount, 61, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, size_t*))             \
  X(GetDimensions, 62, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, int64_t*, size_t))         \
  X(GetSymbolicDimensions, 63, OrtStatus*,                                                       \
    (const OrtTensorTypeAndShapeInfo*, const char**, size_t))                                    \
  X(GetTensorTypeAndShape, 65, OrtStatus*, (const OrtValue*, OrtTensorTypeAndShapeInfo**))       \
  X(KernelInfoGetAttribute_float, 85, OrtStatus*, (const OrtKernelInfo*, const char*, float*))   \
  X(KernelInfoGetAttribute_int64, 86, OrtStatus*, (const OrtKernelInfo*, const char*, int64_t*)) \
  X(KernelInfoGetAttribute_string, 87, OrtStatus*,                                               \
    (const OrtKernelInfo*, const char*, char*, size_t*))                                         \
  X(KernelContext_GetInputCount, 88, OrtStatus*, (const OrtKernelContext*, size_t*))             \
  X(KernelContext_GetInput, 90, OrtStatus*, (const OrtKernelContext*, size_t, const OrtValue**)) \
  X(KernelContext_GetOutput, 91, OrtStatus*,                                                     \
    (OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**))                             \
  X(ReleaseStatus, 93, void, (OrtStatus*))                                                       \
  X(ReleaseTensorTypeAndShapeInfo, 99, void, (OrtTensorTypeAndShapeInfo*))                       \
  X(ReleaseCustomOpDomain, 101, void, (OrtCustomOpDomain*))                                      \
  X(KernelInfoGetAttributeArray_float, 162, OrtStatus*,                                          \
    (const OrtKernelInfo*, const char*, float*, size_t*))                                        \
  X(KernelInfoGetAttributeArray_int64, 163, OrtStatus*,                                          \
    (const OrtKernelInfo*, const char*, int64_t*, size_t*))                                      \
  X(KernelContext_GetGPUComputeStream, 193, OrtStatus*, (const OrtKernelContext*, void**))       \
  X(KernelInfo_GetInputCount, 230, OrtStatus*, (const OrtKernelInfo*, size_t*))                  \
  X(KernelInfo_GetNodeName, 244, OrtStatus*, (const OrtKernelInfo*, char*, size_t*))             \
  X(KernelInfoGetConstantInput_tensor, 249, OrtStatus*,                                          \
    (const OrtKernelInfo*, size_t, int*, const OrtValue**))                                      \
  X(ShapeInferContext_GetInputCount, 267, OrtStatus*, (const OrtShapeInferContext*, size_t*))    \
  X(ShapeInferContext_GetInputTypeShape, 268, OrtStatus*,                                        \
    (const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**))                          \
  X(ShapeInferContext_GetAttribute, 269, OrtStatus*,                                             \
    (const OrtShapeInferContext*, const char*, const OrtOpAttr**))                               \
  X(ShapeInferContext_SetOutputTypeShape, 270, OrtStatus*,                                       \
    (const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*))                     \
  X(SetSymbolicDimensions, 271, OrtStatus*, (OrtTensorTypeAndShapeInfo*, const char**, size_t))  \
  X(ReadOpAttr, 272, OrtStatus*, (const OrtOpAttr*, AttributeType, void*, size_t, size_t*))      \
  X(KernelContext_ParallelFor, 274, OrtStatus*,                                                  \
    (const OrtKernelContext*, ParallelBody, size_t, size_t, void*))

// One more than the highest index above.
constexpr size_t kTableSize = 275;

struct CustomOp;

enum class Index : size_t {
#define FP4DIT_INDEX(name, index, result, parameters) name = index,
  FP4DIT_ORT_FUNCTIONS(FP4DIT_INDEX)
#undef FP4DIT_INDEX
};

// The runtime's table. `api->CreateStatus()(code, text)` calls the function at index 0.
struct Api {
  using Entry = void (*)();
  Entry table[kTableSize];

#define FP4DIT_FUNCTION(name, index, result, parameters)           \
  using name##Function = result(FP4DIT_ORT_CALL*) parameters;      \
  name##Function name() const {                                    \
    static_assert(index < kTableSize, "kTableSize is too small");  \
    return reinterpret_cast<name##Function>(table[size_t{index}]); \
  }
  FP4DIT_ORT_FUNCTIONS(FP4DIT_FUNCTION)
#undef FP4DIT_FUNCTION
};

struct ApiBase {
  const Api*(FP4DIT_ORT_CALL* GetApi)(uint32_t version);
  const char*(FP4DIT_ORT_CALL* GetVersionString)();
};

// What an operator tells the runtime. `version` says how many members the runtime may read.
struct CustomOp {
  uint32_t version;
  void*(FP4DIT_ORT_CALL* CreateKernel)(const CustomOp*, const Api*, const OrtKernelInfo*);
  const char*(FP4DIT_ORT_CALL* GetName)(const CustomOp*);
  const char*(FP4DIT_ORT_CALL* GetExecutionProviderType)(const CustomOp*);
  ElementType(FP4DIT_ORT_CALL* GetInputType)(const CustomOp*, size_t);
  size_t(FP4DIT_ORT_CALL* GetInputTypeCount)(const CustomOp*);
  ElementType(FP4DIT_ORT_CALL* GetOutputType)(const CustomOp*, size_t);
  size_t(FP4DIT_ORT_CALL* GetOutputTypeCount)(const CustomOp*);
  void(FP4DIT_ORT_CALL* KernelCompute)(void*, OrtKernelContext*);
  void(FP4DIT_ORT_CALL* KernelDestroy)(void*);
  Characteristic(FP4DIT_ORT_CALL* GetInputCharacteristic)(const CustomOp*, size_t);
  Characteristic(FP4DIT_ORT_CALL* GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType(FP4DIT_ORT_CALL* GetInputMemoryType)(const CustomOp*, size_t);
  int(FP4DIT_ORT_CALL* GetVariadicInputMinArity)(const CustomOp*);
  int(FP4DIT_ORT_CALL* GetVariadicInputHomogeneity)(const CustomOp*);
  int(FP4DIT_ORT_CALL* GetVariadicOutputMinArity)(const CustomOp*);
  int(FP4DIT_ORT_CALL* GetVariadicOutputHomogeneity)(const CustomOp*);
  OrtStatus*(FP4DIT_ORT_CALL* CreateKernelV2)(const CustomOp*, const Api*, const OrtKernelInfo*,
                                              void**);
  OrtStatus*(FP4DIT_ORT_CALL* KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus*(FP4DIT_ORT_CALL* InferOutputShapeFn)(const CustomOp*, OrtShapeInferContext*);
  int(FP4DIT_ORT_CALL* GetStartVersion)(const CustomOp*);
  int(FP4DIT_ORT_CALL* GetEndVersion)(const CustomOp*);
  // Read by runtimes from 18 on, if `version` said so.
  size_t(FP4DIT_ORT_CALL* GetMayInplace)(int**, int**);
  void(FP4DIT_ORT_CALL* ReleaseMayInplace)(int*, int*);
  size_t(FP4DIT_ORT_CALL* GetAliasMap)(int**, int**);
  void(FP4DIT_ORT_CALL* ReleaseAliasMap)(int*, int*);
};

static_assert(sizeof(void*) != 8 || sizeof(CustomOp) == 208, "OrtCustomOp has 26 words");
static_assert(sizeof(void*) != 8 || offsetof(CustomOp, CreateKernelV2) == 136, "OrtCustomOp");
static_assert(sizeof(void*) != 8 || offsetof(CustomOp, GetEndVersion) == 168, "OrtCustomOp");
static_assert(sizeof(Api) == kTableSize * sizeof(void*), "a table of pointers, nothing else");

}  // namespace fp4dit::ort

#endif  // FP4DIT_ABI_ORT_ABI_H_
