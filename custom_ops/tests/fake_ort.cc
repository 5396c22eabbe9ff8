#include "fake_ort.h"

#include <atomic>
#include <thread>

extern "C" OrtStatus* FP4DIT_ORT_CALL RegisterCustomOps(OrtSessionOptions*,
                                                        const fp4dit::ort::ApiBase*);

namespace fp4dit::fake {
namespace {

struct Status {
  ort::ErrorCode code;
  std::string text;
};
struct Info {
  ort::ElementType type;
  std::vector<int64_t> dims;
};
struct Context {
  Node* node;
  std::vector<Value> outputs;
};
using Domain = std::vector<const ort::CustomOp*>;

std::atomic<int> live{0};
bool is_old = false;

template <typename To, typename From>
To* Cast(From* from) {
  return reinterpret_cast<To*>(from);
}
template <typename To, typename From>
const To& Ref(const From* from) {
  return *reinterpret_cast<const To*>(from);
}

OrtStatus* CreateStatus(ort::ErrorCode code, const char* text) {
  ++live;
  return Cast<OrtStatus>(new Status{code, text});
}
OrtStatus* Error(const char* text) { return CreateStatus(ort::kFail, text); }
void ReleaseStatus(OrtStatus* status) {
  --live;
  delete Cast<Status>(status);
}

OrtStatus* CreateCustomOpDomain(const char*, OrtCustomOpDomain** domain) {
  static Domain the_domain;
  *domain = Cast<OrtCustomOpDomain>(&the_domain);
  return nullptr;
}
OrtStatus* CustomOpDomain_Add(OrtCustomOpDomain* domain, const ort::CustomOp* op) {
  Cast<Domain>(domain)->push_back(op);
  return nullptr;
}
OrtStatus* AddCustomOpDomain(OrtSessionOptions* options, OrtCustomOpDomain* domain) {
  *Cast<Domain*>(options) = Cast<Domain>(domain);
  return nullptr;
}

OrtStatus* GetTensorMutableData(OrtValue* value, void** data) {
  *data = Cast<Value>(value)->data.get();
  return nullptr;
}
OrtStatus* GetTensorTypeAndShape(const OrtValue* value, OrtTensorTypeAndShapeInfo** info) {
  ++live;
  *info = Cast<OrtTensorTypeAndShapeInfo>(new Info{Ref<Value>(value).type, Ref<Value>(value).dims});
  return nullptr;
}
void ReleaseTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo* info) {
  --live;
  delete Cast<Info>(info);
}
OrtStatus* GetTensorElementType(const OrtTensorTypeAndShapeInfo* info, ort::ElementType* type) {
  *type = Ref<Info>(info).type;
  return nullptr;
}
OrtStatus* GetDimensionsCount(const OrtTensorTypeAndShapeInfo* info, size_t* rank) {
  *rank = Ref<Info>(info).dims.size();
  return nullptr;
}
OrtStatus* GetDimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t rank) {
  for (size_t i = 0; i < rank; ++i) dims[i] = Ref<Info>(info).dims[i];
  return nullptr;
}

OrtStatus* GetFloat(const OrtKernelInfo* info, const char* name, float* value) {
  const auto& all = Ref<Node>(info).floats;
  const auto found = all.find(name);
  if (found == all.end()) return Error("no such float");
  *value = found->second;
  return nullptr;
}
OrtStatus* GetInt(const OrtKernelInfo* info, const char* name, int64_t* value) {
  const auto& all = Ref<Node>(info).ints;
  const auto found = all.find(name);
  if (found == all.end()) return Error("no such int");
  *value = found->second;
  return nullptr;
}

OrtStatus* CopyText(const std::string& from, char* text, size_t* size) {
  const size_t room = *size;
  *size = from.size() + 1;
  if (text == nullptr) return nullptr;
  if (room < from.size() + 1) return Error("the buffer is too small");
  std::memcpy(text, from.c_str(), from.size() + 1);
  return nullptr;
}
OrtStatus* GetText(const OrtKernelInfo* info, const char* name, char* text, size_t* size) {
  const auto& all = Ref<Node>(info).texts;
  const auto found = all.find(name);
  return found == all.end() ? Error("no such text") : CopyText(found->second, text, size);
}
OrtStatus* GetNodeName(const OrtKernelInfo* info, char* text, size_t* size) {
  return CopyText(Ref<Node>(info).name, text, size);
}
template <typename T, std::map<std::string, std::vector<T>> Node::* kLists>
OrtStatus* GetList(const OrtKernelInfo* info, const char* name, T* out, size_t* size) {
  const auto& all = Ref<Node>(info).*kLists;
  const auto found = all.find(name);
  if (found == all.end()) return Error("no such list");
  const size_t room = *size;
  *size = found->second.size();
  if (out == nullptr) return nullptr;
  if (room < found->second.size()) return Error("the buffer is too small");
  for (size_t i = 0; i < *size; ++i) out[i] = found->second[i];
  return nullptr;
}
OrtStatus* GetNodeInputCount(const OrtKernelInfo* info, size_t* count) {
  *count = Ref<Node>(info).inputs.size();
  return nullptr;
}
OrtStatus* GetConstant(const OrtKernelInfo* info, size_t index, int* is_constant,
                       const OrtValue** value) {
  const Node& node = Ref<Node>(info);
  *is_constant = node.constant[index] ? 1 : 0;
  *value = node.constant[index] ? Cast<const OrtValue>(node.inputs[index]) : nullptr;
  return nullptr;
}

OrtStatus* GetInput(const OrtKernelContext* context, size_t index, const OrtValue** value) {
  *value = Cast<const OrtValue>(Ref<Context>(context).node->inputs[index]);
  return nullptr;
}
OrtStatus* GetOutput(OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank,
                     OrtValue** value) {
  Context& c = *Cast<Context>(context);
  c.outputs[index] = Value(c.node->output_types[index], std::vector<int64_t>(dims, dims + rank));
  *value = Cast<OrtValue>(&c.outputs[index]);
  return nullptr;
}

char usual_stream;
void* the_stream = &usual_stream;

OrtStatus* GetStream(const OrtKernelContext*, void** stream) {
  *stream = the_stream;
  return nullptr;
}

// Two threads, interleaved pieces.
OrtStatus* ParallelFor(const OrtKernelContext*, ort::ParallelBody body, size_t total, size_t,
                       void* data) {
  const auto work = [=](size_t first) {
    for (size_t i = first; i < total; i += 2) body(data, i);
  };
  std::thread other(work, size_t{1});
  work(0);
  other.join();
  return nullptr;
}

ort::Api MakeApi() {
  ort::Api api = {};
  const auto set = [&api](ort::Index index, auto* function) {
    api.table[static_cast<size_t>(index)] = reinterpret_cast<ort::Api::Entry>(function);
  };
  using ort::Index;
  set(Index::CreateStatus, CreateStatus);
  set(Index::ReleaseStatus, ReleaseStatus);
  set(Index::CreateCustomOpDomain, CreateCustomOpDomain);
  set(Index::CustomOpDomain_Add, CustomOpDomain_Add);
  set(Index::AddCustomOpDomain, AddCustomOpDomain);
  set(Index::GetTensorMutableData, GetTensorMutableData);
  set(Index::GetTensorTypeAndShape, GetTensorTypeAndShape);
  set(Index::ReleaseTensorTypeAndShapeInfo, ReleaseTensorTypeAndShapeInfo);
  set(Index::GetTensorElementType, GetTensorElementType);
  set(Index::GetDimensionsCount, GetDimensionsCount);
  set(Index::GetDimensions, GetDimensions);
  set(Index::KernelInfoGetAttribute_float, GetFloat);
  set(Index::KernelInfoGetAttribute_int64, GetInt);
  set(Index::KernelInfoGetAttribute_string, GetText);
  set(Index::KernelInfoGetAttributeArray_float, GetList<float, &Node::lists>);
  set(Index::KernelInfoGetAttributeArray_int64, GetList<int64_t, &Node::int_lists>);
  set(Index::KernelInfo_GetNodeName, GetNodeName);
  set(Index::KernelInfo_GetInputCount, GetNodeInputCount);
  set(Index::KernelInfoGetConstantInput_tensor, GetConstant);
  set(Index::KernelContext_GetInput, GetInput);
  set(Index::KernelContext_GetOutput, GetOutput);
  set(Index::KernelContext_GetGPUComputeStream, GetStream);
  set(Index::KernelContext_ParallelFor, ParallelFor);
  return api;
}

const ort::Api* GetApi(uint32_t version) {
  static const ort::Api api = MakeApi();
  return version <= (is_old ? 16u : ort::kApiVersion) ? &api : nullptr;
}
const char* GetVersionString() { return "1.16.3"; }

// The status's text, which is then released; empty for none.
std::string Take(OrtStatus* status) {
  if (status == nullptr) return "";
  std::string text = Cast<Status>(status)->text;
  ReleaseStatus(status);
  return text.empty() ? "(an empty status)" : text;
}

}  // namespace

Value::Value(ort::ElementType the_type, std::vector<int64_t> the_dims)
    : type(the_type), dims(std::move(the_dims)), data(new uint8_t[Bytes()]()) {}

size_t Value::Bytes() const {
  size_t bytes = 8;  // of the widest element
  if (type == ort::kFloat) bytes = 4;
  if (type == ort::kInt16 || type == ort::kFloat16) bytes = 2;
  if (type == ort::kInt8 || type == ort::kUint8) bytes = 1;
  for (const int64_t dim : dims) {
    if (dim < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(dim), &bytes)) return 0;
  }
  return bytes;
}

const ort::ApiBase* Base() {
  static const ort::ApiBase base = {GetApi, GetVersionString};
  return &base;
}

void PretendToBeOld(bool old) { is_old = old; }

int LiveObjects() { return live; }

std::map<std::string, const ort::CustomOp*> RegisterAll(std::string* error, const char* provider) {
  Domain* domain = nullptr;
  *error = Take(RegisterCustomOps(Cast<OrtSessionOptions>(&domain), Base()));
  std::map<std::string, const ort::CustomOp*> ops;
  if (domain == nullptr) return ops;
  const std::string wanted = provider == nullptr ? "" : provider;
  for (const ort::CustomOp* op : *domain) {
    const char* const found = op->GetExecutionProviderType(op);
    if ((found == nullptr ? "" : found) == wanted) ops[op->GetName(op)] = op;
  }
  return ops;
}

void SetStream(void* stream) { the_stream = stream == nullptr ? &usual_stream : stream; }

Outcome Run(const ort::CustomOp* op, Node* node, int runs) {
  Outcome outcome;
  void* kernel = nullptr;
  node->constant.resize(node->inputs.size());
  for (size_t i = 0; i < op->GetOutputTypeCount(op); ++i) {
    node->output_types.push_back(op->GetOutputType(op, i));
  }
  outcome.error =
      Take(op->CreateKernelV2(op, Base()->GetApi(1), Cast<const OrtKernelInfo>(node), &kernel));
  if (!outcome.error.empty()) return outcome;
  for (int i = 0; i < runs && outcome.error.empty(); ++i) {
    Context context = {node, {}};
    context.outputs.resize(node->output_types.size());
    outcome.error = Take(op->KernelComputeV2(kernel, Cast<OrtKernelContext>(&context)));
    outcome.outputs = std::move(context.outputs);
  }
  op->KernelDestroy(kernel);
  return outcome;
}

}  // namespace fp4dit::fake
