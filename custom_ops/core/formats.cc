#include "core/formats.h"

#include <cstring>

namespace fp4dit {
namespace {

#define FP4DIT_FORMAT(name, bits, storage_bits, mantissa_bits, count, ...) \
  constexpr float k_##name[count] = {__VA_ARGS__};
#include "core/formats.inc"
#undef FP4DIT_FORMAT

constexpr Format kFormats[] = {
#define FP4DIT_FORMAT(name, bits, storage_bits, mantissa_bits, count, ...) \
  {#name, bits, storage_bits, mantissa_bits, count, k_##name},
#include "core/formats.inc"
#undef FP4DIT_FORMAT
};

#define FP4DIT_FORMAT(name, bits, storage_bits, mantissa_bits, count, ...) ", " #name
constexpr char kNames[] =
#include "core/formats.inc"
    ;
#undef FP4DIT_FORMAT

}  // namespace

float Format::GridInteger(size_t code) const {
  const size_t half = code_count() / 2;
  const size_t magnitude = code % half;
  if (magnitude >= static_cast<size_t>(magnitude_count)) return 0.0f;
  return code < half ? magnitudes[magnitude] : -magnitudes[magnitude];
}

const Format* FindFormat(const char* name) {
  for (const Format& format : kFormats) {
    if (std::strcmp(format.name, name) == 0) return &format;
  }
  return nullptr;
}

const Format* AllFormats(size_t* count) {
  *count = sizeof(kFormats) / sizeof(kFormats[0]);
  return kFormats;
}

const char* FormatNames() { return kNames + 2; }  // past the first ", "

}  // namespace fp4dit
