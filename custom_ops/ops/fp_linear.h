// FpLinear, FpLinearInteger, FpLinearSigns: activations times packed weights, plus bias.
// numerics.linear and linear_integer are the definitions.

#ifndef FP4DIT_OPS_FP_LINEAR_H_
#define FP4DIT_OPS_FP_LINEAR_H_

#include "abi/custom_op.h"
#include "core/node.h"
#include "core/tensor.h"
#include "cpu/kernels/registry.h"
#include "cpu/packing/packed_weights.h"

namespace fp4dit {

// The inputs that are weights.
struct LinearWeightInputs {
  Tensor codes, multipliers, scale, bias;
};

// What those that multiply have in common on every device: attributes and inputs, read and checked.
// Where weights have multipliers, they are an input more; where they have signs, most inputs have a
// bit in place of a code.
struct LinearNode {
  Node node;
  bool multiplied = false;
  bool signs = false;
  const Format* act_format = nullptr;  // null: weight-only
  const Format* weight_format = nullptr;
  size_t group_size = 0;  // 1 to k, as is
  size_t act_group = 0;
  size_t k = 0;
  size_t wide = 0;  // inputs that have codes: k, or fewer where there are signs
  DotKind kind = kDotFloat;

  OrtStatus* Read(const Node& the_node, bool with_multipliers, bool with_signs);
  // The weights if `all` of them are constants; while the kernel is created.
  OrtStatus* ReadConstants(LinearWeightInputs* weights, bool* all) const;
  // The weights of a call.
  OrtStatus* ReadWeights(OrtKernelContext* context, LinearWeightInputs* weights) const;
  // Checks weights, and says how they are to be packed.
  OrtStatus* SourceOf(const LinearWeightInputs& weights, WeightSource* source) const;
  OrtStatus* PackFailed(PackResult result) const;
  OrtStatus* ReadActivations(OrtKernelContext* context, Tensor* q, Tensor* scale,
                             size_t* scale_stride) const;
  OrtStatus* MakeResult(OrtKernelContext* context, const Tensor& q, size_t n, float** y) const;
  // One more call, by what `isa` says in Count.
  void CountCall(size_t isa) const;

 private:
  size_t InputCount() const;
  Tensor* WeightInput(size_t index, LinearWeightInputs* weights, const char** name) const;
  OrtStatus* ReadAttributes();
  OrtStatus* ReadActGroup();
  OrtStatus* CheckGroups() const;
  OrtStatus* CheckAccumulator() const;
  OrtStatus* CheckWeights(const LinearWeightInputs& weights, const WeightSource& source) const;
  OrtStatus* CheckMultipliers(const Tensor& multipliers, const WeightSource& source) const;
  OrtStatus* CheckActivations(const Tensor& q, const Tensor& scale, size_t* scale_stride) const;
};

class FpLinearBase {
 public:
  static void InferShapes(const ShapeInference& inference);
  OrtStatus* Compute(OrtKernelContext* context) const;

 protected:
  OrtStatus* Create(const Node& node, bool multiplied, bool signs = false);

 private:
  struct Call {
    Tensor q;
    Tensor scale;
    size_t scale_stride;
    const PackedWeights* weights;
    size_t n;
    float* y;
  };
  // How a call is cut: a task is a tile of rows times a range of panels.
  struct Cut {
    size_t tile_rows;
    size_t row_tiles;
    size_t task_panels;
    size_t panel_ranges;
  };
  // Some rows, as they were staged.
  struct StagedRows {
    const uint8_t* data;
    size_t first, count;
    int32_t max_act;
  };

  OrtStatus* Pack(const LinearWeightInputs& weights, PackedWeights* packed) const;
  // How a call is run: fp_linear_run.cc.
  Activations RowsOf(const Call& call, size_t first, size_t count) const;
  Cut CutCall(const Call& call) const;
  StagedRows Stage(const Call& call, size_t first, size_t count, uint8_t* staged) const;
  void RunTile(const Call& call, const StagedRows& rows, size_t panel, uint8_t* scratch,
               const void* decoded) const;
  void RunTask(const Call& call, const Cut& cut, size_t task, uint8_t* staged,
               uint8_t* scratch) const;
  OrtStatus* NoMemory() const;
  bool DecodesOnce(const Call& call) const;
  OrtStatus* RunDecoded(OrtKernelContext* context, const Call& call, size_t first, size_t count,
                        uint8_t* memory) const;
  OrtStatus* Run(OrtKernelContext* context, const Call& call) const;

  LinearNode linear_;
  ChosenLinear chosen_ = {};
  bool is_constant_ = false;
  size_t constant_n_ = 0;
  PackedWeights packed_;  // filled at creation if the weights are constant
};

class FpLinear : public FpLinearBase {
 public:
  static constexpr const char* kName = "FpLinear";
  // q (its type follows act_format), scale, codes, weight_scale (float16 or float), bias
  static constexpr ort::ElementType kInputs[] = {ort::kUndefined, ort::kFloat, ort::kUint8,
                                                 ort::kUndefined, ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  OrtStatus* Create(const Node& node) { return FpLinearBase::Create(node, false); }
};

class FpLinearInteger : public FpLinearBase {
 public:
  static constexpr const char* kName = "FpLinearInteger";
  // q, scale, codes, multipliers, channel_scale (float16 or float), bias
  static constexpr ort::ElementType kInputs[] = {ort::kInt8,  ort::kFloat,     ort::kUint8,
                                                 ort::kUint8, ort::kUndefined, ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  OrtStatus* Create(const Node& node) { return FpLinearBase::Create(node, true); }
};

class FpLinearSigns : public FpLinearBase {
 public:
  static constexpr const char* kName = "FpLinearSigns";
  // Those of FpLinearInteger.
  static constexpr ort::ElementType kInputs[] = {ort::kInt8,  ort::kFloat,     ort::kUint8,
                                                 ort::kUint8, ort::kUndefined, ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  OrtStatus* Create(const Node& node) { return FpLinearBase::Create(node, true, true); }
};

}  // namespace fp4dit

#endif  // FP4DIT_OPS_FP_LINEAR_H_
