#include "gpu/driver/image.h"

#include <cstring>

namespace fp4dit::gpu {

const Image* ChooseImage(const Images& images, const char* file, int arch) {
  const Image* best = nullptr;
  for (size_t i = 0; i < images.count; ++i) {
    const Image& image = images.all[i];
    if (std::strcmp(image.file, file) != 0 || image.arch > arch) continue;
    if (!image.is_ptx && image.arch / 10 != arch / 10) continue;
    const bool better = best == nullptr || (best->is_ptx && !image.is_ptx) ||
                        (best->is_ptx == image.is_ptx && best->arch < image.arch);
    if (better) best = &image;
  }
  return best;
}

namespace {

// A length that goes on in further bytes while they are 255; false where they end before it does.
bool ReadLength(const uint8_t** from, const uint8_t* end, size_t* length) {
  if (*length != 15) return true;
  for (;;) {
    if (*from == end) return false;
    const uint8_t more = *(*from)++;
    *length += more;
    if (more != 255) return true;
  }
}

}  // namespace

bool Decompress(const uint8_t* from, size_t size, uint8_t* to, size_t room) {
  constexpr size_t kShortestMatch = 4;
  const uint8_t* const end = from + size;
  size_t made = 0;
  while (from != end) {
    const uint8_t token = *from++;
    size_t literals = token >> 4;
    if (!ReadLength(&from, end, &literals)) return false;
    if (literals > static_cast<size_t>(end - from) || literals > room - made) return false;
    std::memcpy(to + made, from, literals);
    from += literals;
    made += literals;
    if (from == end) break;  // the last sequence has no match
    if (end - from < 3) return false;
    const size_t distance =
        from[0] | static_cast<size_t>(from[1]) << 8 | static_cast<size_t>(from[2]) << 16;
    from += 3;
    size_t length = token & 15;
    if (!ReadLength(&from, end, &length)) return false;
    length += kShortestMatch;
    if (distance == 0 || distance > made || length > room - made) return false;
    for (size_t i = 0; i < length; ++i, ++made) to[made] = to[made - distance];
  }
  return made == room;
}

}  // namespace fp4dit::gpu
