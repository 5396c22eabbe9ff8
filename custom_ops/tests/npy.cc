#include "npy.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>

#include "abi/ort_session_abi.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "arrays are read and written as they lie in memory, which must be little-endian"
#endif

namespace fp4dit::test {
namespace {

struct Type {
  ort::ElementType type;
  const char* description;  // NumPy's
  size_t size;
};

constexpr Type kTypes[] = {
    {ort::kFloat, "<f4", 4}, {ort::kUint8, "|u1", 1},   {ort::kInt8, "|i1", 1},
    {ort::kInt16, "<i2", 2}, {ort::kInt32, "<i4", 4},   {ort::kInt64, "<i8", 8},
    {ort::kBool, "|b1", 1},  {ort::kFloat16, "<f2", 2}, {ort::kDouble, "<f8", 8},
};

constexpr char kMagic[] = "\x93NUMPY";
constexpr size_t kMagicSize = 6;
constexpr size_t kAlignment = 64;  // of the data in the file
constexpr size_t kMaxHeader = 4096;

// What is left of a header's text.
struct Cursor {
  const char* text;

  bool Skip(const char* expected) {
    const size_t size = std::strlen(expected);
    if (std::strncmp(text, expected, size) != 0) return false;
    text += size;
    return true;
  }
  bool Number(int64_t* value) {
    if (*text < '0' || *text > '9') return false;
    for (*value = 0; *text >= '0' && *text <= '9'; ++text) {
      if (*value > (std::numeric_limits<int64_t>::max() - 9) / 10) return false;
      *value = *value * 10 + (*text - '0');
    }
    return true;
  }
};

// The header exactly as NumPy writes it: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3),
// } and spaces up to a newline.
bool ParseHeader(const std::string& header, NpyArray* array) {
  Cursor cursor = {header.c_str()};
  if (!cursor.Skip("{'descr': '")) return false;
  for (const Type& type : kTypes) {
    if (cursor.Skip(type.description)) {
      array->type = type.type;
      break;
    }
  }
  if (array->type == ort::kUndefined) return false;
  if (!cursor.Skip("', 'fortran_order': False, 'shape': (")) return false;
  while (!cursor.Skip(")")) {
    int64_t dim = 0;
    if (!cursor.Number(&dim)) return false;
    array->dims.push_back(dim);
    const bool alone = array->dims.size() == 1 && cursor.Skip(",)");
    if (alone) break;
    if (*cursor.text != ')' && !cursor.Skip(", ")) return false;
  }
  if (!cursor.Skip(", }")) return false;
  while (cursor.Skip(" ")) {
  }
  return cursor.Skip("\n") && *cursor.text == '\0';
}

bool DataSize(const NpyArray& array, size_t* size) {
  *size = ElementSize(array.type);
  for (const int64_t dim : array.dims) {
    if (__builtin_mul_overflow(*size, static_cast<size_t>(dim), size)) return false;
  }
  return true;
}

std::string ReadFile(std::FILE* file, NpyArray* array) {
  unsigned char start[kMagicSize + 4];
  if (std::fread(start, 1, sizeof(start), file) != sizeof(start) ||
      std::memcmp(start, kMagic, kMagicSize) != 0) {
    return "no .npy file: it does not begin as one";
  }
  if (start[6] != 1 || start[7] != 0) return "a .npy file of another version: expected 1.0";
  const size_t length = start[8] + size_t{256} * start[9];
  if (length > kMaxHeader) return "a header that is too long";
  std::string header(length, '\0');
  if (std::fread(&header[0], 1, length, file) != length) return "a header that is cut off";
  *array = NpyArray{};
  if (!ParseHeader(header, array)) {
    return "a header that is not understood: " + header.substr(0, header.find('\n'));
  }
  size_t size = 0;
  if (!DataSize(*array, &size)) return "a shape that is too large";
  // The file's own size bounds what is allocated, whatever its header says.
  const long begin = std::ftell(file);
  if (begin < 0 || std::fseek(file, 0, SEEK_END) != 0) return "it cannot be searched";
  const long end = std::ftell(file);
  if (end < begin || static_cast<size_t>(end - begin) != size) {
    return "not as many bytes as its header says";
  }
  if (std::fseek(file, begin, SEEK_SET) != 0) return "it cannot be searched";
  array->data.resize(size);
  if (size != 0 && std::fread(array->data.data(), 1, size, file) != size) {
    return "it cannot be read to the end";
  }
  return "";
}

}  // namespace

size_t ElementSize(ort::ElementType type) {
  for (const Type& known : kTypes) {
    if (known.type == type) return known.size;
  }
  return 0;
}

std::string ReadNpy(const std::string& path, NpyArray* array) {
  std::FILE* const file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return path + ": " + std::strerror(errno);
  const std::string error = ReadFile(file, array);
  std::fclose(file);
  return error.empty() ? error : path + ": " + error;
}

std::string WriteNpy(const std::string& path, const NpyArray& array) {
  std::string header = "{'descr': '";
  for (const Type& type : kTypes) {
    if (type.type == array.type) header += type.description;
  }
  header += "', 'fortran_order': False, 'shape': (";
  for (size_t i = 0; i < array.dims.size(); ++i) {
    header += (i == 0 ? "" : ", ") + std::to_string(array.dims[i]);
  }
  header += array.dims.size() == 1 ? ",), }" : "), }";
  const size_t unpadded = kMagicSize + 4 + header.size() + 1;
  header.append((kAlignment - unpadded % kAlignment) % kAlignment, ' ');
  header += '\n';
  std::string start(kMagic, kMagicSize);
  start += '\1';
  start += '\0';
  start += static_cast<char>(header.size() % 256);
  start += static_cast<char>(header.size() / 256);
  start += header;
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) return path + ": " + std::strerror(errno);
  const size_t size = array.data.size();
  const bool written = std::fwrite(start.data(), 1, start.size(), file) == start.size() &&
                       (size == 0 || std::fwrite(array.data.data(), 1, size, file) == size);
  const bool closed = std::fclose(file) == 0;
  return written && closed ? "" : path + ": it cannot be written: " + std::strerror(errno);
}

}  // namespace fp4dit::test
