#include "ops/fp_linear.h"

#include <algorithm>
#include <cmath>

#include "core/counters.h"
#include "core/page_out.h"
#include "ops/fp_quantize.h"
#include "ops/fp_unpack.h"

namespace fp4dit {
namespace {

enum Input : size_t { kQ, kScale, kCodes };

}  // namespace

OrtStatus* LinearNode::Read(const Node& the_node, bool with_multipliers, bool with_signs) {
  node = the_node;
  multiplied = with_multipliers;
  signs = with_signs;
  FP4DIT_RETURN_IF_ERROR(node.CheckInputCount(InputCount()));
  FP4DIT_RETURN_IF_ERROR(ReadAttributes());
  return CheckAccumulator();
}

size_t LinearNode::InputCount() const { return multiplied ? 6 : 5; }

Tensor* LinearNode::WeightInput(size_t index, LinearWeightInputs* weights,
                                const char** name) const {
  static constexpr const char* kPlain[] = {"codes", "weight_scale", "bias"};
  static constexpr const char* kMultiplied[] = {"codes", "multipliers", "channel_scale", "bias"};
  *name = multiplied ? kMultiplied[index - kCodes] : kPlain[index - kCodes];
  Tensor* const all[] = {&weights->codes, &weights->multipliers, &weights->scale, &weights->bias};
  return all[index == kCodes || multiplied ? index - kCodes : index - kCodes + 1];
}

OrtStatus* LinearNode::ReadAttributes() {
  FP4DIT_RETURN_IF_ERROR(node.ReadFormat("act_format", true, &act_format));
  FP4DIT_RETURN_IF_ERROR(node.ReadFormat("weight_format", false, &weight_format));
  FP4DIT_RETURN_IF_ERROR(node.CheckGrid(*weight_format));
  FP4DIT_RETURN_IF_ERROR(node.ReadSize("K", &k));
  FP4DIT_RETURN_IF_ERROR(node.ReadSize("group_size", &group_size));
  FP4DIT_RETURN_IF_ERROR(ReadActGroup());
  wide = k;
  if (signs) FP4DIT_RETURN_IF_ERROR(ReadWide(node, *weight_format, k, &wide));
  group_size = std::min(group_size, k);
  act_group = std::min(act_group, k);
  const char* const name = act_format == nullptr ? "" : act_format->name;
  if (multiplied && (act_format == nullptr || IntegerTypeOf(*act_format) != kInt8Type ||
                     IntegerTypeOf(*weight_format) != kInt8Type)) {
    return node.Fail(
        "attributes 'act_format' and 'weight_format' are '%s' and '%s', wanted formats whose "
        "integers are int8",
        name, weight_format->name);
  }
  if (multiplied) FP4DIT_RETURN_IF_ERROR(CheckGroups());
  kind = kDotFloat;
  if (act_format == nullptr || IntegerTypeOf(*act_format) == kFloatType) return nullptr;
  const IntegerType weight = IntegerTypeOf(*weight_format);
  if (weight == kFloatType) {
    return node.Fail(
        "attribute 'weight_format' is '%s', whose integers need float activations: "
        "wanted act_format '' or a format as wide, found '%s'",
        weight_format->name, name);
  }
  const bool narrow = IntegerTypeOf(*act_format) == kInt8Type && weight == kInt8Type;
  kind = narrow ? kDotInt8 : kDotInt16;
  return nullptr;
}

OrtStatus* LinearNode::CheckGroups() const {
  const size_t wanted = k / group_size + (k % group_size != 0 ? 1 : 0);
  size_t found = 0;
  FP4DIT_RETURN_IF_ERROR(node.ReadSizeOr("groups", wanted, &found));
  if (found == wanted) return nullptr;
  return node.Fail("attribute 'groups' is %zu, wanted %zu: groups of %zu in K = %zu", found, wanted,
                   group_size, k);
}

OrtStatus* LinearNode::ReadActGroup() {
  FP4DIT_RETURN_IF_ERROR(node.ReadSizeOr("act_group_size", k, &act_group));
  const bool nested = group_size % act_group == 0 || act_group % group_size == 0;
  if (multiplied || nested || std::max(group_size, act_group) >= k) return nullptr;
  return node.Fail(
      "attributes 'group_size' and 'act_group_size' are %zu and %zu, wanted one that is a multiple "
      "of the other, or at least K = %zu",
      group_size, act_group, k);
}

OrtStatus* LinearNode::CheckAccumulator() const {
  if (kind == kDotFloat) return nullptr;
  // With multipliers weights may be any int8, and all of a row has one scale.
  const Format* weight = multiplied ? FindFormat("int8") : weight_format;
  const size_t size = std::min(multiplied ? k : group_size, act_group);
  const double most_act = static_cast<double>(act_format->max_integer());
  const double most_weight = static_cast<double>(weight->max_integer());
  const double largest = LargestSum(kind, most_act, most_weight, size);
  if (largest < kSumLimit) return nullptr;
  return node.Fail(
      "a group of %zu products of %s and %s can reach %.0f, wanted less than 2^31: "
      "use %s of at most %.0f",
      size, act_format->name, weight->name, largest,
      multiplied ? "an act_group_size" : "a group_size",
      std::floor((kSumLimit - 1) / LargestSum(kind, most_act, most_weight, 1)));
}

OrtStatus* LinearNode::ReadConstants(LinearWeightInputs* weights, bool* all) const {
  *all = false;
  for (size_t i = kCodes; i < InputCount(); ++i) {
    const char* name = nullptr;
    Tensor* const tensor = WeightInput(i, weights, &name);
    int is_constant = 0;
    const OrtValue* value = nullptr;
    FP4DIT_RETURN_IF_ERROR(
        node.api->KernelInfoGetConstantInput_tensor()(node.info, i, &is_constant, &value));
    if (is_constant == 0 || value == nullptr) return nullptr;
    FP4DIT_RETURN_IF_ERROR(ReadTensor(node, value, name, tensor));
  }
  *all = true;
  return nullptr;
}

OrtStatus* LinearNode::ReadWeights(OrtKernelContext* context, LinearWeightInputs* weights) const {
  for (size_t i = kCodes; i < InputCount(); ++i) {
    const char* name = nullptr;
    Tensor* const tensor = WeightInput(i, weights, &name);
    FP4DIT_RETURN_IF_ERROR(ReadInput(node, context, i, name, tensor));
  }
  return nullptr;
}

OrtStatus* LinearNode::CheckWeights(const LinearWeightInputs& weights,
                                    const WeightSource& source) const {
  const Tensor& scale = weights.scale;
  const char* const name = multiplied ? "channel_scale" : "weight_scale";
  if (scale.type != ort::kFloat && scale.type != ort::kFloat16) {
    return node.Fail("input '%s' is %s, wanted float or float16", name, TypeName(scale.type));
  }
  if (multiplied && (scale.rank != 1 || scale.Dim(0) != source.n)) {
    return node.Fail("input 'channel_scale' has shape %s, wanted [%zu]: N of 'codes'",
                     ShapeText(scale).text, source.n);
  }
  if (!multiplied &&
      (scale.rank != 2 || scale.Dim(0) != source.n || scale.Last() != source.groups())) {
    return node.Fail(
        "input 'weight_scale' has shape %s, wanted [%zu, %zu]: N of 'codes', and "
        "groups of %zu in K = %zu",
        ShapeText(scale).text, source.n, source.groups(), group_size, k);
  }
  if (weights.bias.type != ort::kFloat) {
    return node.Fail("input 'bias' is %s, wanted float", TypeName(weights.bias.type));
  }
  if (weights.bias.rank != 1 || weights.bias.Dim(0) != source.n) {
    return node.Fail("input 'bias' has shape %s, wanted [%zu]: N of 'codes'",
                     ShapeText(weights.bias).text, source.n);
  }
  return multiplied ? CheckMultipliers(weights.multipliers, source) : nullptr;
}

OrtStatus* LinearNode::CheckMultipliers(const Tensor& multipliers,
                                        const WeightSource& source) const {
  const size_t bytes = (source.groups() + 1) / 2;
  if (multipliers.type != ort::kUint8) {
    return node.Fail("input 'multipliers' is %s, wanted uint8", TypeName(multipliers.type));
  }
  if (multipliers.rank != 2 || multipliers.Dim(0) != source.n || multipliers.Last() != bytes) {
    return node.Fail(
        "input 'multipliers' has shape %s, wanted [%zu, %zu]: N of 'codes', and two a byte of "
        "groups of %zu in K = %zu",
        ShapeText(multipliers).text, source.n, bytes, group_size, k);
  }
  const double integer = static_cast<double>(weight_format->max_integer());
  const int32_t largest = source.LargestMultiplier();
  if (integer * largest <= 127.0) return nullptr;
  return node.Fail(
      "input 'multipliers' has a %d, and %d times %g, the largest integer of %s, is no int8: "
      "wanted at most %.0f",
      largest, largest, integer, weight_format->name, std::floor(127.0 / integer));
}

OrtStatus* LinearNode::SourceOf(const LinearWeightInputs& weights, WeightSource* source) const {
  FP4DIT_RETURN_IF_ERROR(CheckCodes(node, weights.codes, *weight_format, k, wide));
  *source = {weight_format,
             weights.codes.Dim(0),
             k,
             group_size,
             weights.codes.As<uint8_t>(),
             weights.scale.data,
             weights.scale.type == ort::kFloat16,
             weights.bias.As<float>(),
             weights.multipliers.As<uint8_t>(),
             act_group,
             wide};
  return CheckWeights(weights, *source);
}

OrtStatus* LinearNode::PackFailed(PackResult result) const {
  switch (result) {
    case PackResult::kDone:
      return nullptr;
    case PackResult::kNoMemory:
      return node.Fail("there is no memory to pack its weights");
    default:
      return node.Fail("its weights are too large for this machine's addresses");
  }
}

OrtStatus* LinearNode::CheckActivations(const Tensor& q, const Tensor& scale,
                                        size_t* scale_stride) const {
  const IntegerType type = act_format == nullptr ? kFloatType : IntegerTypeOf(*act_format);
  if (q.type != ElementTypeOf(type)) {
    return node.Fail("input 'q' is %s, wanted %s for act_format '%s'", TypeName(q.type),
                     TypeName(ElementTypeOf(type)), act_format == nullptr ? "" : act_format->name);
  }
  FP4DIT_RETURN_IF_ERROR(CheckLast(node, q, k, "K"));
  if (scale.type != ort::kFloat) {
    return node.Fail("input 'scale' is %s, wanted float", TypeName(scale.type));
  }
  const size_t scales = k / act_group + (k % act_group != 0 ? 1 : 0);
  FP4DIT_RETURN_IF_ERROR(
      CheckLast(node, scale, scales, scales == 1 ? "one scale per row" : "groups in K"));
  return CheckScaleRows(node, q, scale, scale_stride);
}

OrtStatus* LinearNode::ReadActivations(OrtKernelContext* context, Tensor* q, Tensor* scale,
                                       size_t* scale_stride) const {
  FP4DIT_RETURN_IF_ERROR(ReadInput(node, context, kQ, "q", q));
  FP4DIT_RETURN_IF_ERROR(ReadInput(node, context, kScale, "scale", scale));
  return CheckActivations(*q, *scale, scale_stride);
}

OrtStatus* LinearNode::MakeResult(OrtKernelContext* context, const Tensor& q, size_t n,
                                  float** y) const {
  int64_t dims[kMaxRank];
  for (size_t i = 0; i < q.rank; ++i) dims[i] = q.dims[i];
  dims[q.rank - 1] = static_cast<int64_t>(n);
  void* data = nullptr;
  FP4DIT_RETURN_IF_ERROR(MakeOutput(node, context, 0, dims, q.rank, &data));
  *y = static_cast<float*>(data);
  return nullptr;
}

void LinearNode::CountCall(size_t isa) const {
  Count(signs        ? kCountFpLinearSigns
        : multiplied ? kCountFpLinearInteger
                     : kCountFpLinear,
        kind, isa);
}

OrtStatus* FpLinearBase::Create(const Node& node, bool multiplied, bool signs) {
  FP4DIT_RETURN_IF_ERROR(linear_.Read(node, multiplied, signs));
  // Where multipliers do not suit a kernel's blocks the weights become bytes.
  chosen_ = ChooseLinear(Selected().isa, linear_.kind,
                         multiplied ? kBytes : StorageOf(*linear_.weight_format));
  LinearWeightInputs weights;
  FP4DIT_RETURN_IF_ERROR(linear_.ReadConstants(&weights, &is_constant_));
  linear_.node.info = nullptr;
  if (!is_constant_) return nullptr;
  constant_n_ = weights.codes.rank == 2 ? weights.codes.Dim(0) : 0;
  FP4DIT_RETURN_IF_ERROR(Pack(weights, &packed_));
  // The runtime keeps them, and nobody reads them any more.
  PageOut(weights.codes.data, weights.codes.count);
  return nullptr;
}

OrtStatus* FpLinearBase::Pack(const LinearWeightInputs& weights, PackedWeights* packed) const {
  WeightSource source;
  FP4DIT_RETURN_IF_ERROR(linear_.SourceOf(weights, &source));
  return linear_.PackFailed(packed->Pack(source, chosen_.kernel->layout));
}

OrtStatus* FpLinearBase::Compute(OrtKernelContext* context) const {
  Call call = {};
  PackedWeights packed_now;
  FP4DIT_RETURN_IF_ERROR(
      linear_.ReadActivations(context, &call.q, &call.scale, &call.scale_stride));
  call.weights = &packed_;
  call.n = constant_n_;
  if (!is_constant_) {
    LinearWeightInputs weights;
    FP4DIT_RETURN_IF_ERROR(linear_.ReadWeights(context, &weights));
    FP4DIT_RETURN_IF_ERROR(Pack(weights, &packed_now));
    call.weights = &packed_now;
    call.n = weights.codes.Dim(0);
  }
  FP4DIT_RETURN_IF_ERROR(linear_.MakeResult(context, call.q, call.n, &call.y));
  if (call.q.Rows() == 0 || call.n == 0) return nullptr;
  linear_.CountCall(chosen_.isa);
  return Run(context, call);
}

void FpLinearBase::InferShapes(const ShapeInference& inference) {
  SymbolicShape shape = inference.Input(kQ);
  const SymbolicShape codes = inference.Input(kCodes);
  if (shape.rank == 0 || codes.rank != 2) return;
  shape.dims[shape.rank - 1] = codes.dims[0];
  shape.symbols[shape.rank - 1] = codes.symbols[0];
  inference.SetOutput(0, ort::kFloat, shape);
}

FP4DIT_DEFINE_OP(FpLinear)
FP4DIT_DEFINE_OP(FpLinearInteger)
FP4DIT_DEFINE_OP(FpLinearSigns)

}  // namespace fp4dit
