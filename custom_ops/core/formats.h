// The element formats, from the generated formats.inc.

#ifndef FP4DIT_CORE_FORMATS_H_
#define FP4DIT_CORE_FORMATS_H_

#include <cstddef>

namespace fp4dit {

struct Format {
  const char* name;
  int bits;          // of one code, the sign included
  int storage_bits;  // 4 or 8: bits that a stored code takes
  int mantissa_bits;
  int magnitude_count;
  const float* magnitudes;  // grid integers of the magnitude codes, ascending

  // The largest grid integer.
  float max_integer() const { return magnitudes[magnitude_count - 1]; }
  // Codes there are; a stored byte of a format under 8 bits may be no code.
  size_t code_count() const { return size_t{1} << bits; }
  // Grid integer of `code` < code_count(); 0 for the codes that are no numbers.
  float GridInteger(size_t code) const;
};

// The format called `name`, or nullptr.
const Format* FindFormat(const char* name);

// All formats, for tests and messages.
const Format* AllFormats(size_t* count);

// The names of all formats, comma separated.
const char* FormatNames();

}  // namespace fp4dit

#endif  // FP4DIT_CORE_FORMATS_H_
