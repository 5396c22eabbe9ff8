// Compiled only where ONNX Runtime's own headers are found: every index, offset and constant that
// ort_abi.h and ort_session_abi.h declare by hand is compared with them.

#include <onnxruntime_c_api.h>

#include <cstddef>

#include "abi/ort_abi.h"
#include "abi/ort_session_abi.h"

namespace fp4dit::ort {

#define FP4DIT_CHECK(name, index, result, parameters) \
  static_assert(offsetof(::OrtApi, name) == size_t{index} * sizeof(void*), #name);
FP4DIT_ORT_FUNCTIONS(FP4DIT_CHECK)
FP4DIT_ORT_SESSION_FUNCTIONS(FP4DIT_CHECK)
#undef FP4DIT_CHECK

#define FP4DIT_CHECK(member) \
  static_assert(offsetof(::OrtCustomOp, member) == offsetof(CustomOp, member), #member);
FP4DIT_CHECK(version)
FP4DIT_CHECK(CreateKernel)
FP4DIT_CHECK(GetName)
FP4DIT_CHECK(GetExecutionProviderType)
FP4DIT_CHECK(GetInputType)
FP4DIT_CHECK(GetInputTypeCount)
FP4DIT_CHECK(GetOutputType)
FP4DIT_CHECK(GetOutputTypeCount)
FP4DIT_CHECK(KernelCompute)
FP4DIT_CHECK(KernelDestroy)
FP4DIT_CHECK(GetInputCharacteristic)
FP4DIT_CHECK(GetOutputCharacteristic)
FP4DIT_CHECK(GetInputMemoryType)
FP4DIT_CHECK(GetVariadicInputMinArity)
FP4DIT_CHECK(GetVariadicInputHomogeneity)
FP4DIT_CHECK(GetVariadicOutputMinArity)
FP4DIT_CHECK(GetVariadicOutputHomogeneity)
FP4DIT_CHECK(CreateKernelV2)
FP4DIT_CHECK(KernelComputeV2)
FP4DIT_CHECK(InferOutputShapeFn)
FP4DIT_CHECK(GetStartVersion)
FP4DIT_CHECK(GetEndVersion)
#undef FP4DIT_CHECK

static_assert(kFail == static_cast<int>(ORT_FAIL), "OrtErrorCode");
static_assert(kInvalidArgument == static_cast<int>(ORT_INVALID_ARGUMENT), "OrtErrorCode");
static_assert(kNotImplemented == static_cast<int>(ORT_NOT_IMPLEMENTED), "OrtErrorCode");
static_assert(kUndefined == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED), "type");
static_assert(kFloat == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT), "type");
static_assert(kUint8 == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8), "type");
static_assert(kInt8 == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8), "type");
static_assert(kInt16 == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16), "type");
static_assert(kInt64 == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64), "type");
static_assert(kFloat16 == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16), "type");
static_assert(kIntAttribute == static_cast<int>(ORT_OP_ATTR_INT), "OrtOpAttrType");
static_assert(kRequired == static_cast<int>(INPUT_OUTPUT_REQUIRED), "characteristic");
static_assert(kDefaultMemory == static_cast<int>(OrtMemTypeDefault), "OrtMemType");
static_assert(kCpuInput == static_cast<int>(OrtMemTypeCPUInput), "OrtMemType");
static_assert(kInt32 == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32), "type");
static_assert(kBool == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL), "type");
static_assert(kDouble == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE), "type");
static_assert(kLogErrors == static_cast<int>(ORT_LOGGING_LEVEL_ERROR), "OrtLoggingLevel");
static_assert(kLogFatal == static_cast<int>(ORT_LOGGING_LEVEL_FATAL), "OrtLoggingLevel");
static_assert(kDeviceAllocator == static_cast<int>(OrtDeviceAllocator), "OrtAllocatorType");

}  // namespace fp4dit::ort
