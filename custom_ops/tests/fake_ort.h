// A stand-in for ONNX Runtime: the functions of ort_abi.h over plain C++ objects, so that the ops
// can be run under sanitizers, with models that the runtime would never let through.

#ifndef FP4DIT_TESTS_FAKE_ORT_H_
#define FP4DIT_TESTS_FAKE_ORT_H_

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "abi/ort_abi.h"

namespace fp4dit::fake {

// A tensor in a heap block of its exact size, so that a sanitizer sees the first byte past it.
struct Value {
  ort::ElementType type = ort::kFloat;
  std::vector<int64_t> dims;
  std::unique_ptr<uint8_t[]> data;

  Value() = default;
  Value(ort::ElementType the_type, std::vector<int64_t> the_dims);
  // 0 if a dimension is negative or the product overflows: then there is no data.
  size_t Bytes() const;

  template <typename T>
  static Value Of(ort::ElementType type, std::vector<int64_t> dims, const std::vector<T>& items) {
    Value value(type, std::move(dims));
    if (!items.empty()) std::memcpy(value.data.get(), items.data(), items.size() * sizeof(T));
    return value;
  }
  template <typename T>
  const T* As() const {
    return reinterpret_cast<const T*>(data.get());
  }
};

struct Node {
  std::string name = "fc1";
  std::map<std::string, int64_t> ints;
  std::map<std::string, float> floats;
  std::map<std::string, std::string> texts;
  std::map<std::string, std::vector<float>> lists;
  std::map<std::string, std::vector<int64_t>> int_lists;
  std::vector<Value*> inputs;  // null: not connected
  std::vector<bool> constant;  // by input
  std::vector<ort::ElementType> output_types;
};

struct Outcome {
  std::string error;  // empty: it ran
  std::vector<Value> outputs;
};

// The first `version` functions there are: null, as an old runtime has it, above kApiVersion.
const ort::ApiBase* Base();
// Makes GetApi answer null for any version but 1, as a runtime older than ours does.
void PretendToBeOld(bool old);

// Statuses and shape objects that were made and not yet released.
int LiveObjects();

// The ops that RegisterCustomOps added for `provider` (null: the CPU's), by name. Empty `error` if
// it succeeded.
std::map<std::string, const ort::CustomOp*> RegisterAll(std::string* error,
                                                        const char* provider = nullptr);

// The stream of calls from now on; null: the usual one.
void SetStream(void* stream);

// Creates a kernel of `op` for `node`, and runs it `runs` times.
Outcome Run(const ort::CustomOp* op, Node* node, int runs = 1);

}  // namespace fp4dit::fake

#endif  // FP4DIT_TESTS_FAKE_ORT_H_
