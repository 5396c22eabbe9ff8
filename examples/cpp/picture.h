// Images as BMP: no compression, no library, opens everywhere.

#ifndef FP4DIT_EXAMPLES_PICTURE_H_
#define FP4DIT_EXAMPLES_PICTURE_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
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

struct Picture {
  size_t height, width;
  std::vector<uint8_t> pixels;  // rows from the top, red, green and blue each
};

// An image of 24 bits a pixel, or of 8 that name colours; `what` is its role, for messages.
inline Picture ReadBmp(const std::filesystem::path& path, const std::string& what) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  const auto get = [&bytes](size_t place, size_t count) {
    size_t value = 0;
    for (size_t i = count; i-- > 0;) {
      value = value << 8 | static_cast<uint8_t>(place + i < bytes.size() ? bytes[place + i] : 0);
    }
    return value;
  };
  constexpr size_t kMostSide = 1u << 16;
  const bool from_top = get(25, 1) >> 7 != 0;
  Picture picture{from_top ? (1ull << 32) - get(22, 4) : get(22, 4), get(18, 4), {}};
  const size_t first = get(10, 4), bits = get(28, 2), palette = 14 + get(14, 4);
  const size_t colors = bits == 24 ? 0 : get(46, 4) == 0 ? 256 : get(46, 4);
  const bool sides = picture.height - 1 < kMostSide && picture.width - 1 < kMostSide;
  const size_t stride = sides ? (bits * picture.width + 31) / 32 * 4 : 0;
  if (bytes.rfind("BM", 0) != 0 || (bits != 24 && bits != 8) || get(30, 4) != 0 || !sides ||
      colors > 256 || palette + 4 * colors > bytes.size() ||
      first + stride * picture.height > bytes.size()) {
    throw Error(path.u8string() +
                " is no BMP file of 24 or 8 bits a pixel, without compression: expected " + what);
  }
  for (size_t row = 0; row < picture.height; ++row) {
    const size_t line = first + stride * (from_top ? row : picture.height - 1 - row);
    for (size_t column = 0; column < picture.width; ++column) {
      const size_t pixel = bits == 24 ? line + 3 * column : palette + 4 * get(line + column, 1);
      for (size_t color = 3; color-- > 0;) {
        picture.pixels.push_back(static_cast<uint8_t>(get(pixel + color, 1)));
      }
    }
  }
  return picture;
}

}  // namespace example

#endif  // FP4DIT_EXAMPLES_PICTURE_H_
