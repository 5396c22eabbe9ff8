// NumPy's .npy files, as far as tensors of ONNX models need them.

#ifndef FP4DIT_TESTS_NPY_H_
#define FP4DIT_TESTS_NPY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "abi/ort_abi.h"

namespace fp4dit::test {

struct NpyArray {
  ort::ElementType type = ort::kUndefined;
  std::vector<int64_t> dims;
  std::vector<uint8_t> data;  // row-major, little-endian
};

// Bytes of an element; 0 for a type that is neither read nor written here.
size_t ElementSize(ort::ElementType type);

// What these return is empty, or says in one line why the file is refused.
std::string ReadNpy(const std::string& path, NpyArray* array);
std::string WriteNpy(const std::string& path, const NpyArray& array);

}  // namespace fp4dit::test

#endif  // FP4DIT_TESTS_NPY_H_
