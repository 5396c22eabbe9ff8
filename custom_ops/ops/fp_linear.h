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

// What those that multiply have in common: where weights have multipliers, they are an input more;
// where they have signs, most inputs have a bit in place of a code.
class FpLinearBase {
 public:
  static void InferShapes(const ShapeInference& inference);
  OrtStatus* Compute(OrtKernelContext* context) const;

 protected:
  OrtStatus* Create(const Node& node, bool multiplied, bool signs = false);

 private:
  struct Weights;
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

  size_t InputCount() const;
  Tensor* WeightInput(size_t index, Weights* weights, const char** name) const;
  OrtStatus* ReadAttributes();
  OrtStatus* ReadActGroup();
  OrtStatus* CheckGroups() const;
  OrtStatus* CheckAccumulator() const;
  OrtStatus* PackConstants();
  OrtStatus* CheckWeights(const Weights& weights, const WeightSource& source) const;
  OrtStatus* CheckMultipliers(const Tensor& multipliers, const WeightSource& source) const;
  OrtStatus* Pack(const Weights& weights, PackedWeights* packed) const;
  OrtStatus* CheckActivations(const Tensor& q, const Tensor& scale, size_t* scale_stride) const;
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

  Node node_;
  bool multiplied_ = false;
  bool signs_ = false;
  const Format* act_format_ = nullptr;  // null: weight-only
  const Format* weight_format_ = nullptr;
  size_t group_size_ = 0;  // 1 to k_, as is
  size_t act_group_ = 0;
  size_t k_ = 0;
  size_t wide_ = 0;  // inputs that have codes: k_, or fewer where there are signs
  DotKind kind_ = kDotFloat;
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
