// FpUnpack and FpUnpackSigns on a GPU.

#include "ops/fp_unpack.h"

#include <cstring>

#include "core/counters.h"
#include "cpu/packing/packed_weights.h"
#include "gpu/driver/driver.h"
#include "gpu/ops/rows.h"

namespace fp4dit::gpu {
namespace {

constexpr size_t kPart = 1024;  // elements of a row that a block takes

template <typename Cpu, bool kSigns>
class Unpack {
 public:
  static constexpr const char* kName = Cpu::kName;
  static constexpr auto& kInputs = Cpu::kInputs;
  static constexpr auto& kOutputs = Cpu::kOutputs;
  static constexpr unsigned kCpuInputs = 1;  // codes, which are checked there
  static void InferShapes(const ShapeInference& s) { Cpu::InferShapes(s); }

  OrtStatus* Create(const Node& node) {
    FP4DIT_RETURN_IF_ERROR(unpack_.Read(node, kSigns));
    FP4DIT_RETURN_IF_ERROR(FindDevice(node, &device_));
    int is_constant = 0;
    const OrtValue* value = nullptr;
    FP4DIT_RETURN_IF_ERROR(
        node.api->KernelInfoGetConstantInput_tensor()(node.info, 0, &is_constant, &value));
    unpack_.node.info = nullptr;
    is_constant_ = is_constant != 0 && value != nullptr;
    if (!is_constant_) return nullptr;
    Tensor codes;
    FP4DIT_RETURN_IF_ERROR(ReadTensor(unpack_.node, value, "codes", &codes));
    FP4DIT_RETURN_IF_ERROR(
        CheckCodes(unpack_.node, codes, *unpack_.format, unpack_.k, unpack_.wide));
    return Copy(codes, &memory_);
  }

  OrtStatus* Compute(OrtKernelContext* context) const {
    Tensor codes;
    float* q = nullptr;
    FP4DIT_RETURN_IF_ERROR(unpack_.Begin(context, &codes, &q));
    if (codes.count == 0) return nullptr;
    unpack_.CountCall(kCountGpu);
    if (is_constant_) return Decode(context, memory_, codes.Dim(0), q);
    DeviceMemory memory;
    FP4DIT_RETURN_IF_ERROR(Copy(codes, &memory));
    FP4DIT_RETURN_IF_ERROR(Decode(context, memory, codes.Dim(0), q));
    return Finish(unpack_.node);  // before the codes are freed
  }

 private:
  // The grid, then the codes.
  OrtStatus* Copy(const Tensor& codes, DeviceMemory* memory) const {
    AlignedBuffer bytes;
    if (!bytes.Allocate(sizeof(unpack_.grid) + codes.count)) {
      return unpack_.node.Fail("there is no memory to copy its codes");
    }
    std::memcpy(bytes.data(), unpack_.grid, sizeof(unpack_.grid));
    if (codes.count != 0) {
      std::memcpy(bytes.data() + sizeof(unpack_.grid), codes.data, codes.count);
    }
    return memory->Fill(unpack_.node, *device_, bytes.data(), sizeof(unpack_.grid) + codes.count);
  }

  OrtStatus* Decode(OrtKernelContext* context, const DeviceMemory& memory, size_t rows,
                    float* q) const {
    UnpackArguments a = {};
    a.grid = memory.As<float>();
    a.codes = memory.As<uint8_t>() + sizeof(unpack_.grid);
    a.q = q;
    a.rows = CutRows(unpack_.k, kPart);
    a.row_bytes = static_cast<int64_t>(StoredBytes(*unpack_.format, unpack_.k, unpack_.wide));
    a.wide = static_cast<int64_t>(unpack_.wide);
    a.code_bits = unpack_.format->storage_bits;
    Launch launch;
    launch.kernel = "fp4dit_unpack";
    launch.threads = 256;
    launch.Set(a);
    FP4DIT_RETURN_IF_ERROR(SetBlocks(unpack_.node, rows, a.rows, 1, &launch));
    return Run(unpack_.node, *device_, launch, context);
  }

  UnpackNode unpack_;
  const Device* device_ = nullptr;
  bool is_constant_ = false;
  DeviceMemory memory_;  // filled at creation if the codes are constant
};

}  // namespace

using FpUnpack = Unpack<fp4dit::FpUnpack, false>;
using FpUnpackSigns = Unpack<fp4dit::FpUnpackSigns, true>;

}  // namespace fp4dit::gpu

namespace fp4dit {

FP4DIT_DEFINE_GPU_OP(FpUnpack)
FP4DIT_DEFINE_GPU_OP(FpUnpackSigns)

}  // namespace fp4dit
