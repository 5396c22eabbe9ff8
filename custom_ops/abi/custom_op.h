// Makes the C struct that the runtime wants of a class that has
//   static constexpr const char* kName; kInputs[], kOutputs[] (element types; kUndefined: any)
//   static void InferShapes(const ShapeInference&)
//   OrtStatus* Create(const Node&)                 validates, reads attributes, packs weights
//   OrtStatus* Compute(OrtKernelContext*) const    runs
// A class for a GPU's provider has the same name, and the same numbers of inputs and outputs, as
// the CPU's, and
//   static constexpr unsigned kCpuInputs           a bit for each input that is to stay on the CPU

#ifndef FP4DIT_ABI_CUSTOM_OP_H_
#define FP4DIT_ABI_CUSTOM_OP_H_

#include <cstddef>
#include <new>

#include "abi/ort_abi.h"
#include "abi/shape_inference.h"
#include "core/node.h"

namespace fp4dit {

// Version of the domain, and of every op in it.
constexpr int kOpVersion = 1;

// The runtime hands the struct back to every call, shape inference included.
struct RegisteredOp : ort::CustomOp {
  const ort::Api* api;
  const char* provider;  // null: the CPU's
};

template <typename Op>
struct OpAdapter {
  template <typename T, size_t kCount>
  static constexpr size_t CountOf(const T (&)[kCount]) {
    return kCount;
  }

  static const char* FP4DIT_ORT_CALL Name(const ort::CustomOp*) { return Op::kName; }
  static const char* FP4DIT_ORT_CALL Provider(const ort::CustomOp* op) {
    return static_cast<const RegisteredOp*>(op)->provider;
  }
  static ort::ElementType FP4DIT_ORT_CALL InputType(const ort::CustomOp*, size_t i) {
    return i < CountOf(Op::kInputs) ? Op::kInputs[i] : ort::kUndefined;
  }
  static size_t FP4DIT_ORT_CALL InputCount(const ort::CustomOp*) { return CountOf(Op::kInputs); }
  static ort::ElementType FP4DIT_ORT_CALL OutputType(const ort::CustomOp*, size_t i) {
    return i < CountOf(Op::kOutputs) ? Op::kOutputs[i] : ort::kUndefined;
  }
  static size_t FP4DIT_ORT_CALL OutputCount(const ort::CustomOp*) { return CountOf(Op::kOutputs); }
  static ort::Characteristic FP4DIT_ORT_CALL Required(const ort::CustomOp*, size_t) {
    return ort::kRequired;
  }
  static ort::MemoryType FP4DIT_ORT_CALL Memory(const ort::CustomOp*, size_t) {
    return ort::kDefaultMemory;
  }
  static int FP4DIT_ORT_CALL Version(const ort::CustomOp*) { return kOpVersion; }
  static int FP4DIT_ORT_CALL One(const ort::CustomOp*) { return 1; }

  static OrtStatus* FP4DIT_ORT_CALL Create(const ort::CustomOp*, const ort::Api* api,
                                           const OrtKernelInfo* info, void** kernel) {
    *kernel = nullptr;
    Node node;
    node.Bind(api, info, Op::kName);
    Op* op = new (std::nothrow) Op;
    if (op == nullptr) return node.Fail("there is no memory for its kernel");
    OrtStatus* const status = op->Create(node);
    if (status != nullptr) {
      delete op;
      return status;
    }
    *kernel = op;
    return nullptr;
  }

  static OrtStatus* FP4DIT_ORT_CALL Compute(void* kernel, OrtKernelContext* context) {
    return static_cast<const Op*>(kernel)->Compute(context);
  }
  static void FP4DIT_ORT_CALL Destroy(void* kernel) { delete static_cast<Op*>(kernel); }

  static OrtStatus* FP4DIT_ORT_CALL InferShapes(const ort::CustomOp* op,
                                                OrtShapeInferContext* context) {
    Op::InferShapes(ShapeInference(static_cast<const RegisteredOp*>(op)->api, context));
    return nullptr;
  }
};

template <typename Op>
void FillOp(const ort::Api* api, RegisteredOp* op) {
  using Adapter = OpAdapter<Op>;
  *op = {};
  op->api = api;
  op->version = ort::kApiVersion;
  op->GetName = Adapter::Name;
  op->GetExecutionProviderType = Adapter::Provider;
  op->GetInputType = Adapter::InputType;
  op->GetInputTypeCount = Adapter::InputCount;
  op->GetOutputType = Adapter::OutputType;
  op->GetOutputTypeCount = Adapter::OutputCount;
  op->GetInputCharacteristic = Adapter::Required;
  op->GetOutputCharacteristic = Adapter::Required;
  op->GetInputMemoryType = Adapter::Memory;
  op->GetVariadicInputMinArity = Adapter::One;
  op->GetVariadicInputHomogeneity = Adapter::One;
  op->GetVariadicOutputMinArity = Adapter::One;
  op->GetVariadicOutputHomogeneity = Adapter::One;
  op->CreateKernelV2 = Adapter::Create;
  op->KernelComputeV2 = Adapter::Compute;
  op->KernelDestroy = Adapter::Destroy;
  op->InferOutputShapeFn = Adapter::InferShapes;
  op->GetStartVersion = Adapter::Version;
  op->GetEndVersion = Adapter::Version;
}

// In the file of an operator that ops/ops.inc lists.
#define FP4DIT_DEFINE_OP(Op) \
  void Fill##Op(const ort::Api* api, RegisteredOp* op) { FillOp<Op>(api, op); }

template <typename Op>
ort::MemoryType FP4DIT_ORT_CALL GpuMemory(const ort::CustomOp*, size_t i) {
  return (Op::kCpuInputs >> i & 1) != 0 ? ort::kCpuInput : ort::kDefaultMemory;
}

template <typename Op>
void FillGpuOp(const ort::Api* api, const char* provider, RegisteredOp* op) {
  FillOp<Op>(api, op);
  op->provider = provider;
  op->GetInputMemoryType = GpuMemory<Op>;
}

// In the file of an operator that gpu/ops/ops.inc lists: the class of that name in namespace gpu.
#define FP4DIT_DEFINE_GPU_OP(Op)                                                  \
  void FillGpu##Op(const ort::Api* api, const char* provider, RegisteredOp* op) { \
    FillGpuOp<gpu::Op>(api, provider, op);                                        \
  }

}  // namespace fp4dit

#endif  // FP4DIT_ABI_CUSTOM_OP_H_
