// FpAttention: softmax(q k^T * attention_scale + bias) v of quantized q, k and v.
// attention.attention is the definition.

#ifndef FP4DIT_OPS_FP_ATTENTION_H_
#define FP4DIT_OPS_FP_ATTENTION_H_

#include "abi/custom_op.h"
#include "core/node.h"
#include "core/tensor.h"
#include "cpu/kernels/registry.h"

namespace fp4dit {

// Keys that are scored at a time, so that no row of scores grows with the sequence.
constexpr size_t kKeyTile = 256;
// Largest size of a head.
constexpr size_t kMaxHeadSize = 256;

// The tensors of a call: q [B, S, H, D], k and v [B, L, H, D].
struct AttentionTensors {
  enum Input : size_t { kQ, kQScale, kK, kKScale, kV, kVScale, kBias, kInputCount };
  Tensor inputs[kInputCount];
  size_t batch, queries, keys, heads, size;
  float* y;
};

// What the attributes say, and a call's inputs, checked: for every device.
struct AttentionNode {
  Node node;
  const Format* format = nullptr;
  IntegerType type = kInt8Type;
  float attention_scale = 0.0f;
  size_t value_group = 0;  // keys whose products with v fit a sum

  DotKind kind() const { return type == kInt8Type ? kDotInt8 : kDotInt16; }
  OrtStatus* Read(const Node& the_node);
  // Reads a call's inputs, and makes its output.
  OrtStatus* Begin(OrtKernelContext* context, AttentionTensors* call) const;

 private:
  OrtStatus* CheckIntegers(const Tensor& q, const Tensor& scale, const Tensor& like) const;
  OrtStatus* CheckBias(const Tensor& bias, const AttentionTensors& call) const;
};

class FpAttention {
 public:
  static constexpr const char* kName = "FpAttention";
  // q, its scale, k, its scale, v, its scale (types follow the format), bias
  static constexpr ort::ElementType kInputs[] = {ort::kUndefined, ort::kFloat,     ort::kUndefined,
                                                 ort::kFloat,     ort::kUndefined, ort::kFloat,
                                                 ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  static void InferShapes(const ShapeInference& inference);
  OrtStatus* Create(const Node& node);
  OrtStatus* Compute(OrtKernelContext* context) const;

 private:
  struct Call;
  struct Packed;
  struct Workspace;

  Packed Layout(const Call& call) const;
  void PackHead(const Call& call, const Packed& packed, size_t head) const;
  void PackValues(const Call& call, const Packed& packed, size_t head) const;
  void RunTask(const Call& call, const Packed& packed, size_t task) const;
  LinearTile MakeTile(const void* staged, const float* scale, size_t rows) const;
  void Score(const Call& call, const Packed& packed, size_t head, size_t first, size_t count,
             size_t rows, Workspace* work) const;
  void Weigh(const Call& call, const Packed& packed, size_t head, size_t first, size_t count,
             size_t rows, Workspace* work) const;

  AttentionNode attention_;
  ChosenLinear scores_ = {};
  ChosenLinear values_ = {};
  Chosen<SoftmaxKernel> softmax_ = {};
};

}  // namespace fp4dit

#endif  // FP4DIT_OPS_FP_ATTENTION_H_
