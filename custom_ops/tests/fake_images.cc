// Images for the emulated driver, in the place of what tools/build_gpu.py makes. The environment's
// FP4DIT_TEST_IMAGES says what is wrong with them: "none" or "damaged".

#include <cstdlib>
#include <cstring>

#include "gpu/driver/image.h"

namespace fp4dit::gpu {
namespace {

// A block of LZ4: 17 characters as they are.
constexpr uint8_t kBlock[] = {0xf0, 0x02, 'i', 'm', 'a', 'g', 'e', ' ', 'o', 'f',
                              ' ',  'a',  ' ', 't', 'e', 's', 't', ' ', ' '};
constexpr size_t kLoaded = 17;
constexpr Stream kStream = {0, sizeof(kBlock), kLoaded};
constexpr Image kImages[] = {{"all", 75, false, kStream, 0, kLoaded},
                             {"all", 80, false, kStream, 0, kLoaded - 1},
                             {"all", 80, true, kStream, 0, kLoaded}};
constexpr Image kDamaged[] = {{"all", 75, true, {0, sizeof(kBlock) - 1, kLoaded}, 0, kLoaded}};

}  // namespace

Images EmbeddedImages() {
  const char* const wrong = std::getenv("FP4DIT_TEST_IMAGES");
  if (wrong != nullptr && std::strcmp(wrong, "none") == 0) return {nullptr, 0, nullptr};
  if (wrong != nullptr && std::strcmp(wrong, "damaged") == 0) return {kDamaged, 1, kBlock};
  return {kImages, sizeof(kImages) / sizeof(kImages[0]), kBlock};
}

}  // namespace fp4dit::gpu
