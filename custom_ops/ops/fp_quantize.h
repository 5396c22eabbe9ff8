// FpQuantize, FpQuantizeInt16, FpQuantizeFloat: activations to grid integers, with one scale for
// each group of a row; FpHadamardQuantize, which rotates rows before; FpQuantizeStatic and its
// like, under one scale that is given; FpGeluQuantize and its like, of the GELU of their input, and
// FpNormQuantize and its like, of its layer norm, scaled and shifted. numerics.quantize,
// numerics.quantize_static, activations.gelu and norms.layer_norm are the definitions.

#ifndef FP4DIT_OPS_FP_QUANTIZE_H_
#define FP4DIT_OPS_FP_QUANTIZE_H_

#include "abi/custom_op.h"
#include "core/node.h"
#include "core/tensor.h"
#include "cpu/kernels/registry.h"

namespace fp4dit {

// The element type whose grid integers `format` needs, and its name in the runtime.
IntegerType IntegerTypeOf(const Format& format);
ort::ElementType ElementTypeOf(IntegerType type);

// Elements worth handing to another thread.
constexpr size_t kPieceElements = 1 << 15;

// Input 0, "x": float, with a last dimension of at least 1.
OrtStatus* ReadRows(const Node& node, OrtKernelContext* context, Tensor* x);

// What the attributes of an operator that quantizes say, and how it is called: for every device.
struct Quantizer {
  enum Kind { kDynamic, kRotated, kStatic, kKinds };
  enum Before { kNothing, kGelu, kNorm, kBefores };  // what is computed first
  static constexpr size_t kMostCandidates = 4;
  // Rows [.., K] that are broadcast to those of x: row r has `data` from r / inner % outer rows on.
  struct Broadcast {
    const float* data = nullptr;
    size_t inner = 1, outer = 1;
    const float* At(size_t row, size_t k) const { return data + row / inner % outer * k; }
  };
  struct Call {
    const float* x;
    size_t rows, k, group_size, groups;
    uint8_t* q = nullptr;
    float* scale = nullptr;
    Broadcast gain = {}, shift = {};
  };

  Node node;
  Kind kind = kDynamic;
  Before before = kNothing;
  IntegerType type = kInt8Type;
  const Format* format = nullptr;
  QuantizeGrid grid = {};
  size_t group_size = 0;
  size_t block = 0;      // 0: rows are not rotated
  float epsilon = 0.0f;  // of the norm
  float candidates[kMostCandidates] = {};
  size_t candidate_count = 1;

  // Reads and checks the attributes of `the_node`.
  OrtStatus* Read(const Node& the_node, IntegerType the_type, Kind the_kind,
                  Before the_before = kNothing);
  // Reads the call's input, and makes its outputs.
  OrtStatus* Begin(OrtKernelContext* context, Call* call) const;
  // Whether what is quantized is not x itself.
  bool MakesRows() const { return block != 0 || before != kNothing; }
  // One more call, by what `isa` says in Count.
  void CountCall(size_t isa) const;

 private:
  OrtStatus* ReadCandidates();
  OrtStatus* ReadLargest();
  OrtStatus* ReadBroadcast(OrtKernelContext* context, size_t index, const char* name,
                           const Tensor& x, Broadcast* rows) const;
};

class FpQuantizeBase {
 public:
  OrtStatus* Compute(OrtKernelContext* context) const;

 protected:
  using Kind = Quantizer::Kind;
  using Before = Quantizer::Before;
  OrtStatus* Create(const Node& node, IntegerType type, Kind kind = Kind::kDynamic,
                    Before before = Before::kNothing);

 private:
  using Call = Quantizer::Call;

  QuantizeGrid BestGrid(const float* x, size_t k) const;
  void MakeRow(const Call& call, size_t row, float* made) const;
  void RunRows(const Call& call, size_t begin, size_t end, float* made) const;
  void RunStaticRow(const float* x, size_t k, uint8_t* q, float* scale, float* cut) const;

  Quantizer settings_;
  Chosen<QuantizeRow> kernel_ = {};
  QuantizeError error_ = nullptr;
  HadamardRow hadamard_ = nullptr;
  GeluRow gelu_ = nullptr;
  NormKernels norm_ = {};
};

void InferQuantizeShapes(const ShapeInference& inference, ort::ElementType type);

class FpQuantize : public FpQuantizeBase {
 public:
  static constexpr const char* kName = "FpQuantize";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kInt8, ort::kFloat};
  static void InferShapes(const ShapeInference& s) { InferQuantizeShapes(s, kOutputs[0]); }
  OrtStatus* Create(const Node& node) { return FpQuantizeBase::Create(node, kInt8Type); }
};

class FpQuantizeInt16 : public FpQuantizeBase {
 public:
  static constexpr const char* kName = "FpQuantizeInt16";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kInt16, ort::kFloat};
  static void InferShapes(const ShapeInference& s) { InferQuantizeShapes(s, kOutputs[0]); }
  OrtStatus* Create(const Node& node) { return FpQuantizeBase::Create(node, kInt16Type); }
};

class FpQuantizeFloat : public FpQuantizeBase {
 public:
  static constexpr const char* kName = "FpQuantizeFloat";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat, ort::kFloat};
  static void InferShapes(const ShapeInference& s) { InferQuantizeShapes(s, kOutputs[0]); }
  OrtStatus* Create(const Node& node) { return FpQuantizeBase::Create(node, kFloatType); }
};

class FpHadamardQuantize : public FpQuantizeBase {
 public:
  static constexpr const char* kName = "FpHadamardQuantize";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kInt8, ort::kFloat};
  static void InferShapes(const ShapeInference& s) { InferQuantizeShapes(s, kOutputs[0]); }
  OrtStatus* Create(const Node& node) {
    return FpQuantizeBase::Create(node, kInt8Type, Kind::kRotated);
  }
};

class FpGeluQuantize : public FpQuantize {
 public:
  static constexpr const char* kName = "FpGeluQuantize";
  OrtStatus* Create(const Node& node) {
    return FpQuantizeBase::Create(node, kInt8Type, Kind::kDynamic, Before::kGelu);
  }
};

class FpGeluQuantizeInt16 : public FpQuantizeInt16 {
 public:
  static constexpr const char* kName = "FpGeluQuantizeInt16";
  OrtStatus* Create(const Node& node) {
    return FpQuantizeBase::Create(node, kInt16Type, Kind::kDynamic, Before::kGelu);
  }
};

class FpGeluHadamardQuantize : public FpHadamardQuantize {
 public:
  static constexpr const char* kName = "FpGeluHadamardQuantize";
  OrtStatus* Create(const Node& node) {
    return FpQuantizeBase::Create(node, kInt8Type, Kind::kRotated, Before::kGelu);
  }
};

class FpNormQuantize : public FpQuantize {
 public:
  static constexpr const char* kName = "FpNormQuantize";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat};
  OrtStatus* Create(const Node& node) {
    return FpQuantizeBase::Create(node, kInt8Type, Kind::kDynamic, Before::kNorm);
  }
};

class FpNormQuantizeInt16 : public FpQuantizeInt16 {
 public:
  static constexpr const char* kName = "FpNormQuantizeInt16";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat};
  OrtStatus* Create(const Node& node) {
    return FpQuantizeBase::Create(node, kInt16Type, Kind::kDynamic, Before::kNorm);
  }
};

class FpNormHadamardQuantize : public FpHadamardQuantize {
 public:
  static constexpr const char* kName = "FpNormHadamardQuantize";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat};
  OrtStatus* Create(const Node& node) {
    return FpQuantizeBase::Create(node, kInt8Type, Kind::kRotated, Before::kNorm);
  }
};

class FpQuantizeStatic : public FpQuantize {
 public:
  static constexpr const char* kName = "FpQuantizeStatic";
  OrtStatus* Create(const Node& node) {
    return FpQuantizeBase::Create(node, kInt8Type, Kind::kStatic);
  }
};

class FpQuantizeStaticInt16 : public FpQuantizeInt16 {
 public:
  static constexpr const char* kName = "FpQuantizeStaticInt16";
  OrtStatus* Create(const Node& node) {
    return FpQuantizeBase::Create(node, kInt16Type, Kind::kStatic);
  }
};

class FpQuantizeStaticFloat : public FpQuantizeFloat {
 public:
  static constexpr const char* kName = "FpQuantizeStaticFloat";
  OrtStatus* Create(const Node& node) {
    return FpQuantizeBase::Create(node, kFloatType, Kind::kStatic);
  }
};

}  // namespace fp4dit

#endif  // FP4DIT_OPS_FP_QUANTIZE_H_
