#include "core/node.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace fp4dit {
namespace {

// True if the call succeeded; its status is not needed, since ours says more.
bool Succeeded(const ort::Api* api, OrtStatus* status) {
  if (status == nullptr) return true;
  api->ReleaseStatus()(status);
  return false;
}

// Bytes of the UTF-8 character that begins at `text`; 0 if there is none, or it controls terminals.
size_t PrintableSize(const char* text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text);
  const unsigned first = bytes[0];
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
  if (first < 0xc2 || first > 0xf4) return 0;
  const size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  uint32_t character = first & (0x7fu >> size);
  for (size_t i = 1; i < size; ++i) {
    if ((bytes[i] & 0xc0) != 0x80) return 0;  // the closing zero, too
    character = character << 6 | (bytes[i] & 0x3fu);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0xa0, 0x800, 0x10000};  // of two bytes below are controls
  const bool surrogate = character >= 0xd800 && character < 0xe000;
  return character < kLeast[size] || character > 0x10ffff || surrogate ? 0 : size;
}

// Names and texts come from models: what is no UTF-8, or would be obeyed by a terminal, becomes
// '?'.
void MakePrintable(char* text) {
  while (*text != '\0') {
    const size_t size = PrintableSize(text);
    if (size == 0) *text = '?';
    text += size == 0 ? 1 : size;
  }
}

}  // namespace

void Node::Bind(const ort::Api* the_api, const OrtKernelInfo* the_info, const char* the_op) {
  api = the_api;
  info = the_info;
  op = the_op;
  size_t size = sizeof(name);
  if (!Succeeded(api, api->KernelInfo_GetNodeName()(info, name, &size))) {
    std::snprintf(name, sizeof(name), "(its name is too long to show)");
  }
  name[sizeof(name) - 1] = '\0';
}

OrtStatus* Node::Fail(const char* format, ...) const {
  char text[1024];
  const int head = std::snprintf(text, sizeof(text), "%s node '%s': ", op, name);
  const size_t used = head > 0 ? static_cast<size_t>(head) : 0;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text + used, sizeof(text) - used, format, arguments);
  va_end(arguments);
  MakePrintable(text);
  return api->CreateStatus()(ort::kInvalidArgument, text);
}

OrtStatus* Node::CheckInputCount(size_t count) const {
  size_t found = 0;
  FP4DIT_RETURN_IF_ERROR(api->KernelInfo_GetInputCount()(info, &found));
  if (found == count) return nullptr;
  return Fail("it has %zu inputs, wanted %zu", found, count);
}

OrtStatus* Node::ReadInt(const char* attribute, int64_t* value) const {
  if (Succeeded(api, api->KernelInfoGetAttribute_int64()(info, attribute, value))) return nullptr;
  return Fail("attribute '%s' is missing or no integer", attribute);
}

OrtStatus* Node::ReadFloat(const char* attribute, float* value) const {
  if (Succeeded(api, api->KernelInfoGetAttribute_float()(info, attribute, value))) return nullptr;
  return Fail("attribute '%s' is missing or no float", attribute);
}

OrtStatus* Node::ReadText(const char* attribute, char (&text)[kMaxText]) const {
  size_t size = kMaxText;
  if (Succeeded(api, api->KernelInfoGetAttribute_string()(info, attribute, text, &size))) {
    text[kMaxText - 1] = '\0';
    return nullptr;
  }
  return Fail("attribute '%s' is missing, no text, or over %zu characters long", attribute,
              kMaxText - 1);
}

OrtStatus* Node::ReadFormat(const char* attribute, bool may_be_empty, const Format** format) const {
  char text[kMaxText];
  FP4DIT_RETURN_IF_ERROR(ReadText(attribute, text));
  *format = FindFormat(text);
  if (*format != nullptr || (may_be_empty && text[0] == '\0')) return nullptr;
  return Fail("attribute '%s' is '%s', wanted one of %s", attribute, text, FormatNames());
}

OrtStatus* Node::CheckGrid(const Format& format) const {
  int64_t bits = 0;
  FP4DIT_RETURN_IF_ERROR(ReadInt("bits", &bits));
  if (bits != format.storage_bits) {
    return Fail("attribute 'bits' is %lld, wanted %d for format %s", static_cast<long long>(bits),
                format.storage_bits, format.name);
  }
  float grid[kMaxFloats];
  size_t count = 0;  // asks for the length
  const bool known =
      Succeeded(api, api->KernelInfoGetAttributeArray_float()(info, "grid", nullptr, &count));
  if (!known) return Fail("attribute 'grid' is missing or no list of floats");
  if (count != format.code_count()) {
    return Fail("attribute 'grid' has %zu entries, wanted %zu for format %s", count,
                format.code_count(), format.name);
  }
  FP4DIT_RETURN_IF_ERROR(api->KernelInfoGetAttributeArray_float()(info, "grid", grid, &count));
  for (size_t i = 0; i < count; ++i) {
    if (grid[i] == format.GridInteger(i)) continue;
    return Fail("attribute 'grid' has %g at entry %zu, wanted %g for format %s",
                static_cast<double>(grid[i]), i, static_cast<double>(format.GridInteger(i)),
                format.name);
  }
  return nullptr;
}

OrtStatus* Node::ReadSize(const char* attribute, size_t* value) const {
  int64_t found = 0;
  FP4DIT_RETURN_IF_ERROR(ReadInt(attribute, &found));
  if (found < 1 || static_cast<uint64_t>(found) > SIZE_MAX / 2) {
    return Fail("attribute '%s' is %lld, wanted a size of at least 1", attribute,
                static_cast<long long>(found));
  }
  *value = static_cast<size_t>(found);
  return nullptr;
}

bool Node::Has(const char* attribute) const {
  int64_t integer = 0;
  float number = 0.0f;
  size_t size = 0;
  size_t length = 0;
  return Succeeded(api, api->KernelInfoGetAttribute_int64()(info, attribute, &integer)) ||
         Succeeded(api, api->KernelInfoGetAttribute_float()(info, attribute, &number)) ||
         Succeeded(api, api->KernelInfoGetAttribute_string()(info, attribute, nullptr, &length)) ||
         Succeeded(api,
                   api->KernelInfoGetAttributeArray_float()(info, attribute, nullptr, &size)) ||
         Succeeded(api, api->KernelInfoGetAttributeArray_int64()(info, attribute, nullptr, &size));
}

OrtStatus* Node::ReadSizeOr(const char* attribute, size_t absent, size_t* value) const {
  *value = absent;
  return Has(attribute) ? ReadSize(attribute, value) : nullptr;
}

}  // namespace fp4dit
