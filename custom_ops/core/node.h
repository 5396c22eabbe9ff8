// A node of the graph as an op sees it when its kernel is created: name, attributes, and errors
// that tell which node they are about.

#ifndef FP4DIT_CORE_NODE_H_
#define FP4DIT_CORE_NODE_H_

#include <cstddef>
#include <cstdint>

#include "abi/ort_abi.h"
#include "core/formats.h"

#if defined(__GNUC__)
#define FP4DIT_PRINTF(text, arguments) __attribute__((format(printf, text, arguments)))
#else
#define FP4DIT_PRINTF(text, arguments)
#endif

// Returns from the function with the status of `call` if that is an error.
#define FP4DIT_RETURN_IF_ERROR(call)                       \
  do {                                                     \
    if (OrtStatus* const status_ = (call)) return status_; \
  } while (false)

namespace fp4dit {

// Longest text attribute that is read: the longest format name, with room to show a wrong one.
constexpr size_t kMaxText = 64;
// Longest list attribute that is read: one entry a code.
constexpr size_t kMaxFloats = 256;

struct Node {
  const ort::Api* api = nullptr;
  const OrtKernelInfo* info = nullptr;  // valid only while the kernel is created
  const char* op = "";
  char name[256] = "";

  void Bind(const ort::Api* the_api, const OrtKernelInfo* the_info, const char* the_op);

  // An invalid-argument status: "FpLinear node 'name': " and the text, made printable.
  OrtStatus* Fail(const char* format, ...) const FP4DIT_PRINTF(2, 3);

  // `count` inputs must be connected.
  OrtStatus* CheckInputCount(size_t count) const;

  OrtStatus* ReadInt(const char* attribute, int64_t* value) const;
  OrtStatus* ReadFloat(const char* attribute, float* value) const;
  OrtStatus* ReadText(const char* attribute, char (&text)[kMaxText]) const;

  // An attribute that names a format; `may_be_empty` makes "" a null format.
  OrtStatus* ReadFormat(const char* attribute, bool may_be_empty, const Format** format) const;
  // The attributes `bits` and `grid`, which must say what `format` says.
  OrtStatus* CheckGrid(const Format& format) const;
  // An integer attribute that must be at least 1.
  OrtStatus* ReadSize(const char* attribute, size_t* value) const;
  // The same, or `absent` if there is none: files made before it was there mean that.
  OrtStatus* ReadSizeOr(const char* attribute, size_t absent, size_t* value) const;
  // Whether there is an attribute of this name, of a type that operators have.
  bool Has(const char* attribute) const;
};

}  // namespace fp4dit

#endif  // FP4DIT_CORE_NODE_H_
