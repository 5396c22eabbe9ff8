// Writes an image as BMP: no compression, no library, opens everywhere.

#ifndef FP4DIT_EXAMPLES_PICTURE_H_
#define FP4DIT_EXAMPLES_PICTURE_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

#include "ort.h"

namespace example {

// `pixels` are rows from the top, red, green and blue each. A file that is there is replaced once
// the new one is complete.
inline void WriteBmp(const std::filesystem::path& path, const std::vector<uint8_t>& pixels,
                     size_t height, size_t width) {
  const size_t stride = (3 * width + 3) / 4 * 4;
  constexpr size_t kHeader = 54;
  std::string bytes = "BM";
  const auto put = [&bytes](size_t value, int count) {
    for (int i = 0; i < count; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xff);
  };
  put(kHeader + stride * height, 4);
  put(0, 4);
  put(kHeader, 4);
  put(40, 4);  // bytes from here to the pixels
  put(width, 4);
  put(height, 4);
  put(1, 2);   // plane
  put(24, 2);  // bits a pixel
  bytes.resize(kHeader, 0);
  for (size_t row = height; row-- > 0;) {  // from the bottom; blue, green, red
    for (size_t column = 0; column < width; ++column) {
      const uint8_t* const pixel = &pixels[3 * (row * width + column)];
      for (size_t color = 3; color-- > 0;) bytes += static_cast<char>(pixel[color]);
    }
    bytes.resize(bytes.size() + stride - 3 * width, 0);
  }
  std::filesystem::path partial = path;
  partial += ".part";
  std::ofstream file(partial, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(partial, path, error);
  if (!file || error) {
    std::error_code ignored;
    std::filesystem::remove(partial, ignored);
    throw Error(path.u8string() + " cannot be written");
  }
}

}  // namespace example

#endif  // FP4DIT_EXAMPLES_PICTURE_H_
