#include "ops/fp_linear.h"

#include "counters.h"
#include "ops/fp_quantize.h"
#include "ops/fp_unpack.h"
#include "parallel.h"

namespace fp4dit {
namespace {

// Products worth handing to another thread: tens of microseconds.
constexpr size_t kPieceProducts = 1 << 19;

enum Input : size_t { kQ, kScale, kCodes, kWeightScale, kBias, kInputCount };

constexpr const char* kInputNames[kInputCount] = {"q", "scale", "codes", "weight_scale", "bias"};

// Rows of one tile: as even as the limit allows.
size_t TileRows(size_t rows) {
  const size_t tiles = (rows + kMaxTileRows - 1) / kMaxTileRows;
  return (rows + tiles - 1) / tiles;
}

}  // namespace

struct FpLinear::Call {
  Tensor q;
  Tensor scale;
  size_t scale_stride;
  const PackedWeights* weights;
  size_t n;
  float* y;
};

OrtStatus* FpLinear::Create(const Node& node) {
  node_ = node;
  FP4DIT_RETURN_IF_ERROR(node_.CheckInputCount(kInputCount));
  FP4DIT_RETURN_IF_ERROR(ReadAttributes());
  FP4DIT_RETURN_IF_ERROR(CheckAccumulator());
  chosen_ = ChooseLinear(Selected().isa, kind_);
  FP4DIT_RETURN_IF_ERROR(PackConstants());
  node_.info = nullptr;
  return nullptr;
}

OrtStatus* FpLinear::ReadAttributes() {
  FP4DIT_RETURN_IF_ERROR(node_.ReadFormat("act_format", true, &act_format_));
  FP4DIT_RETURN_IF_ERROR(node_.ReadFormat("weight_format", false, &weight_format_));
  FP4DIT_RETURN_IF_ERROR(node_.CheckGrid(*weight_format_));
  FP4DIT_RETURN_IF_ERROR(node_.ReadSize("K", &k_));
  FP4DIT_RETURN_IF_ERROR(node_.ReadSize("group_size", &group_size_));
  if (group_size_ > k_) group_size_ = k_;
  kind_ = kDotFloat;
  if (act_format_ == nullptr || IntegerTypeOf(*act_format_) == kFloatType) return nullptr;
  const IntegerType weight = IntegerTypeOf(*weight_format_);
  if (weight == kFloatType) {
    return node_.Fail(
        "attribute 'weight_format' is '%s', whose integers need float activations: "
        "wanted act_format '' or a format as wide, found '%s'",
        weight_format_->name, act_format_->name);
  }
  const bool narrow = IntegerTypeOf(*act_format_) == kInt8Type && weight == kInt8Type;
  kind_ = narrow ? kDotInt8 : kDotInt16;
  return nullptr;
}

OrtStatus* FpLinear::CheckAccumulator() const {
  if (kind_ == kDotFloat) return nullptr;
  const double largest = static_cast<double>(act_format_->max_integer()) *
                         static_cast<double>(weight_format_->max_integer()) *
                         static_cast<double>(group_size_);
  if (largest < 2147483648.0) return nullptr;
  return node_.Fail(
      "a group of %zu products of %s and %s can reach %.0f, wanted less than 2^31: "
      "use a smaller group_size",
      group_size_, act_format_->name, weight_format_->name, largest);
}

OrtStatus* FpLinear::PackConstants() {
  Tensor tensors[kInputCount];
  bool all = true;
  for (size_t i = kCodes; i < kInputCount; ++i) {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    FP4DIT_RETURN_IF_ERROR(
        node_.api->KernelInfoGetConstantInput_tensor()(node_.info, i, &is_constant, &value));
    all = all && is_constant != 0 && value != nullptr;
    if (!all) return nullptr;
    FP4DIT_RETURN_IF_ERROR(ReadTensor(node_, value, kInputNames[i], &tensors[i]));
  }
  is_constant_ = true;
  constant_n_ = tensors[kCodes].rank == 2 ? tensors[kCodes].Dim(0) : 0;
  return Pack(tensors[kCodes], tensors[kWeightScale], tensors[kBias], &packed_);
}

OrtStatus* FpLinear::Pack(const Tensor& codes, const Tensor& weight_scale, const Tensor& bias,
                          PackedWeights* packed) const {
  FP4DIT_RETURN_IF_ERROR(CheckCodes(node_, codes, *weight_format_, k_));
  WeightSource source = {weight_format_,
                         codes.Dim(0),
                         k_,
                         group_size_,
                         codes.As<uint8_t>(),
                         weight_scale.data,
                         weight_scale.type == ort::kFloat16,
                         bias.As<float>()};
  if (weight_scale.type != ort::kFloat && weight_scale.type != ort::kFloat16) {
    return node_.Fail("input 'weight_scale' is %s, wanted float or float16",
                      TypeName(weight_scale.type));
  }
  if (weight_scale.rank != 2 || weight_scale.Dim(0) != source.n ||
      weight_scale.Last() != source.groups()) {
    return node_.Fail(
        "input 'weight_scale' has shape %s, wanted [%zu, %zu]: N of 'codes', and "
        "groups of %zu in K = %zu",
        ShapeText(weight_scale).text, source.n, source.groups(), group_size_, k_);
  }
  if (bias.type != ort::kFloat) {
    return node_.Fail("input 'bias' is %s, wanted float", TypeName(bias.type));
  }
  if (bias.rank != 1 || bias.Dim(0) != source.n) {
    return node_.Fail("input 'bias' has shape %s, wanted [%zu]: N of 'codes'", ShapeText(bias).text,
                      source.n);
  }
  switch (packed->Pack(source, chosen_.kernel->layout)) {
    case PackResult::kDone:
      return nullptr;
    case PackResult::kNoMemory:
      return node_.Fail("there is no memory to pack its weights");
    default:
      return node_.Fail("its weights are too large for this machine's addresses");
  }
}

OrtStatus* FpLinear::CheckActivations(const Tensor& q, const Tensor& scale,
                                      size_t* scale_stride) const {
  const IntegerType type = act_format_ == nullptr ? kFloatType : IntegerTypeOf(*act_format_);
  if (q.type != ElementTypeOf(type)) {
    return node_.Fail("input 'q' is %s, wanted %s for act_format '%s'", TypeName(q.type),
                      TypeName(ElementTypeOf(type)),
                      act_format_ == nullptr ? "" : act_format_->name);
  }
  FP4DIT_RETURN_IF_ERROR(CheckLast(node_, q, k_, "K"));
  if (scale.type != ort::kFloat) {
    return node_.Fail("input 'scale' is %s, wanted float", TypeName(scale.type));
  }
  FP4DIT_RETURN_IF_ERROR(CheckLast(node_, scale, 1, "one scale a row"));
  return CheckScaleRows(node_, q, scale, scale_stride);
}

OrtStatus* FpLinear::Compute(OrtKernelContext* context) const {
  Call call = {};
  PackedWeights packed_now;
  FP4DIT_RETURN_IF_ERROR(ReadInput(node_, context, kQ, "q", &call.q));
  FP4DIT_RETURN_IF_ERROR(ReadInput(node_, context, kScale, "scale", &call.scale));
  FP4DIT_RETURN_IF_ERROR(CheckActivations(call.q, call.scale, &call.scale_stride));
  call.weights = &packed_;
  call.n = constant_n_;
  if (!is_constant_) {
    Tensor tensors[kInputCount];
    for (size_t i = kCodes; i < kInputCount; ++i) {
      FP4DIT_RETURN_IF_ERROR(ReadInput(node_, context, i, kInputNames[i], &tensors[i]));
    }
    FP4DIT_RETURN_IF_ERROR(
        Pack(tensors[kCodes], tensors[kWeightScale], tensors[kBias], &packed_now));
    call.weights = &packed_now;
    call.n = tensors[kCodes].Dim(0);
  }
  int64_t dims[kMaxRank];
  for (size_t i = 0; i < call.q.rank; ++i) dims[i] = call.q.dims[i];
  dims[call.q.rank - 1] = static_cast<int64_t>(call.n);
  void* y = nullptr;
  FP4DIT_RETURN_IF_ERROR(MakeOutput(node_, context, 0, dims, call.q.rank, &y));
  call.y = static_cast<float*>(y);
  if (call.q.Rows() == 0 || call.n == 0) return nullptr;
  Count(kCountLinear, kind_, chosen_.isa);
  return Run(context, call);
}

OrtStatus* FpLinear::Run(OrtKernelContext* context, const Call& call) const {
  const size_t rows = call.q.Rows();
  const size_t tile_rows = TileRows(rows);
  const size_t row_tiles = (rows + tile_rows - 1) / tile_rows;
  const size_t panels = call.weights->panel_count();
  const size_t products = tile_rows * chosen_.kernel->layout.panel_width * k_;
  const size_t q_bytes = TypeSize(call.q.type);
  const auto run = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const size_t row = i / panels * tile_rows;
      const size_t panel = i % panels;
      LinearTile tile = {};
      call.weights->SetPanel(panel, &tile);
      tile.q = call.q.As<uint8_t>() + row * k_ * q_bytes;
      tile.q_type = q_bytes == 1 ? kInt8Type : q_bytes == 2 ? kInt16Type : kFloatType;
      tile.scale = call.scale.As<float>() + row * call.scale_stride;
      tile.scale_stride = call.scale_stride;
      tile.y = call.y + row * call.n + panel * chosen_.kernel->layout.panel_width;
      tile.y_stride = call.n;
      tile.rows = rows - row < tile_rows ? rows - row : tile_rows;
      chosen_.kernel->run(tile);
    }
  };
  return ParallelFor(node_.api, context, row_tiles * panels, kPieceProducts / products + 1, run);
}

void FpLinear::InferShapes(const ShapeInference& inference) {
  SymbolicShape shape = inference.Input(kQ);
  const SymbolicShape codes = inference.Input(kCodes);
  if (shape.rank == 0 || codes.rank != 2) return;
  shape.dims[shape.rank - 1] = codes.dims[0];
  shape.symbols[shape.rank - 1] = codes.symbols[0];
  inference.SetOutput(0, ort::kFloat, shape);
}

}  // namespace fp4dit
