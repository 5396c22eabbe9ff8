// ONNX Runtime's sessions for this example, on the C interface of whatever libonnxruntime.so or
// onnxruntime.dll is given at run time. ONNX Runtime's headers come with its releases, not with its
// Python or Node packages; a program that has them will include onnxruntime_cxx_api.h in place of
// this file and call Ort::Env, Ort::SessionOptions (RegisterCustomOpsLibrary, AddConfigEntry,
// DisableMemPattern) and Ort::Session.

#ifndef FP4DIT_EXAMPLES_ORT_H_
#define FP4DIT_EXAMPLES_ORT_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "abi/ort_session_abi.h"
#include "core/shared_library.h"

namespace example {

// What is wrong, in a line for the user.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// `text` with '?' for the control characters that a terminal would obey: names come from files.
inline std::string Shown(std::string text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool latin = i > 0 && text[i - 1] == '\xc2';  // U+0080 to U+009F, in UTF-8
    if (byte < 0x20 || byte == 0x7f) text[i] = '?';
    if (latin && byte >= 0x80 && byte < 0xa0) text[i - 1] = text[i] = '?';
  }
  return text;
}

template <typename T>
struct Tensor {
  std::vector<int64_t> shape;
  std::vector<T> values;
};
using Floats = Tensor<float>;
using Integers = Tensor<int64_t>;
using Inputs = std::map<std::string, std::variant<Floats, Integers>>;

template <typename T>
using Handle = std::unique_ptr<T, void(FP4DIT_ORT_CALL*)(T*)>;

// A loaded ONNX Runtime. Lives longer than its sessions.
class Runtime {
 public:
  explicit Runtime(const std::filesystem::path& path)
      : api_(Load(path)), env_(nullptr, api_.ReleaseEnv()) {
    OrtEnv* env = nullptr;
    Check(api_.CreateEnv()(fp4dit::ort::kLogFatal, "example", &env), path);
    env_.reset(env);
  }

  const fp4dit::ort::SessionApi& api() const { return api_; }
  const OrtEnv* env() const { return env_.get(); }

  // Throws the first line of a failed call's message, after the file it is about.
  void Check(OrtStatus* status, const std::filesystem::path& file) const {
    if (status == nullptr) return;
    const std::string text = api_.GetErrorMessage()(status);
    api_.base()->ReleaseStatus()(status);
    throw Error(file.u8string() + ": " + text.substr(0, text.find('\n')));
  }

 private:
  static fp4dit::ort::SessionApi Load(const std::filesystem::path& path) {
    const std::string name = path.u8string();
    void* const library = fp4dit::OpenLibrary(path.c_str());
    if (library == nullptr) {
      throw Error(name + " cannot be loaded: " + fp4dit::LibraryError() +
                  "; name it with --runtime");
    }
    using GetBase = const fp4dit::ort::ApiBase*(FP4DIT_ORT_CALL*)();
    const auto get_base = reinterpret_cast<GetBase>(fp4dit::FindSymbol(library, "OrtGetApiBase"));
    if (get_base == nullptr) throw Error(name + " is no ONNX Runtime: it lacks OrtGetApiBase");
    const fp4dit::ort::Api* const api = get_base()->GetApi(fp4dit::ort::kApiVersion);
    if (api == nullptr) {
      throw Error(name + " is ONNX Runtime " + get_base()->GetVersionString() + ": expected 1." +
                  std::to_string(fp4dit::ort::kApiVersion) + " or newer");
    }
    return fp4dit::ort::SessionApi(api);
  }

  fp4dit::ort::SessionApi api_;
  Handle<OrtEnv> env_;
};

struct SessionOptions {
  std::filesystem::path library;  // of custom operators; none if empty
  int threads = 0;                // that run one operator; 0 leaves the choice to the runtime
};

// A model, ready to run on the CPU.
class Session {
 public:
  Session(const Runtime& runtime, const std::filesystem::path& model, const SessionOptions& options)
      : runtime_(runtime),
        model_(model),
        session_(nullptr, api().ReleaseSession()),
        memory_(nullptr, api().ReleaseMemoryInfo()) {
    OrtSessionOptions* raw = nullptr;
    Check(api().CreateSessionOptions()(&raw));
    const Handle<OrtSessionOptions> held(raw, api().ReleaseSessionOptions());
    // Planned for the second run, memory is another block beside what the first one took.
    Check(api().DisableMemPattern()(raw));
    if (options.threads > 0) Check(api().SetIntraOpNumThreads()(raw, options.threads));
    // Or the runtime rounds activations once more where the models run without the library.
    constexpr const char* kExact = "session.qdq_matmulnbits_accuracy_level";
    Check(api().AddSessionConfigEntry()(raw, kExact, "0"));
    if (!options.library.empty()) {
      runtime.Check(api().RegisterCustomOpsLibrary_V2()(raw, options.library.c_str()),
                    options.library);
    }
    OrtSession* session = nullptr;
    Check(api().CreateSession()(runtime.env(), model.c_str(), raw, &session));
    session_.reset(session);
    OrtMemoryInfo* memory = nullptr;
    Check(api().CreateCpuMemoryInfo()(fp4dit::ort::kDeviceAllocator, fp4dit::ort::kDefaultMemory,
                                      &memory));
    memory_.reset(memory);
    inputs_ = Names(api().SessionGetInputCount(), api().SessionGetInputName());
    outputs_ = Names(api().SessionGetOutputCount(), api().SessionGetOutputName());
  }

  // The model's output `name`, or its first. Of the inputs it takes those that it declares.
  Floats Run(Inputs inputs, const std::string& name = "") const {
    std::vector<const char*> names;
    std::vector<Handle<OrtValue>> held;
    std::vector<const OrtValue*> values;
    for (const std::string& input : inputs_) {
      const auto found = inputs.find(input);
      if (found == inputs.end()) throw Error(model_.u8string() + ": unknown input " + input);
      names.push_back(input.c_str());
      std::visit([&](auto& tensor) { held.push_back(Value(&tensor)); }, found->second);
      values.push_back(held.back().get());
    }
    const std::string& wanted = name.empty() && !outputs_.empty() ? outputs_[0] : name;
    if (std::find(outputs_.begin(), outputs_.end(), wanted) == outputs_.end()) {
      throw Error(model_.u8string() + ": no output " + wanted);
    }
    const char* const output = wanted.c_str();
    OrtValue* raw = nullptr;
    Check(api().Run()(session_.get(), nullptr, names.data(), values.data(), values.size(), &output,
                      1, &raw));
    const Handle<OrtValue> result(raw, api().ReleaseValue());
    return Read(raw, wanted);
  }

 private:
  const fp4dit::ort::SessionApi& api() const { return runtime_.api(); }
  void Check(OrtStatus* status) const { runtime_.Check(status, model_); }

  template <typename Count, typename Name>
  std::vector<std::string> Names(Count count_of, Name name_of) const {
    OrtAllocator* allocator = nullptr;
    Check(api().GetAllocatorWithDefaultOptions()(&allocator));
    size_t count = 0;
    Check(count_of(session_.get(), &count));
    std::vector<std::string> names;
    for (size_t i = 0; i < count; ++i) {
      char* name = nullptr;
      Check(name_of(session_.get(), i, allocator, &name));
      names.emplace_back(name);
      Check(api().AllocatorFree()(allocator, name));
    }
    return names;
  }

  // A view of the tensor.
  template <typename T>
  Handle<OrtValue> Value(Tensor<T>* tensor) const {
    constexpr auto kType = std::is_same_v<T, float> ? fp4dit::ort::kFloat : fp4dit::ort::kInt64;
    OrtValue* value = nullptr;
    Check(api().CreateTensorWithDataAsOrtValue()(
        memory_.get(), tensor->values.data(), tensor->values.size() * sizeof(T),
        tensor->shape.data(), tensor->shape.size(), kType, &value));
    return {value, api().ReleaseValue()};
  }

  Floats Read(OrtValue* value, const std::string& name) const {
    const fp4dit::ort::Api& base = *api().base();
    int is_tensor = 0;
    Check(api().IsTensor()(value, &is_tensor));
    if (is_tensor == 0) throw Error(model_.u8string() + ": output " + name + " is no tensor");
    OrtTensorTypeAndShapeInfo* info = nullptr;
    Check(base.GetTensorTypeAndShape()(value, &info));
    const Handle<OrtTensorTypeAndShapeInfo> held(info, base.ReleaseTensorTypeAndShapeInfo());
    auto type = fp4dit::ort::kUndefined;
    Check(base.GetTensorElementType()(info, &type));
    if (type != fp4dit::ort::kFloat)
      throw Error(model_.u8string() + ": output " + name + " is not float32");
    size_t rank = 0;
    Check(base.GetDimensionsCount()(info, &rank));
    Floats result;
    result.shape.resize(rank);
    Check(base.GetDimensions()(info, result.shape.data(), rank));
    size_t count = 1;
    for (const int64_t side : result.shape) count *= static_cast<size_t>(side);
    void* data = nullptr;
    Check(base.GetTensorMutableData()(value, &data));
    const float* const first = static_cast<const float*>(data);
    result.values.assign(first, first + count);
    return result;
  }

  const Runtime& runtime_;
  std::filesystem::path model_;
  Handle<OrtSession> session_;
  Handle<OrtMemoryInfo> memory_;
  std::vector<std::string> inputs_, outputs_;
};

}  // namespace example

#endif  // FP4DIT_EXAMPLES_ORT_H_
