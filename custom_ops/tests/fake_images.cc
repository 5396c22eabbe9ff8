// Images for the emulated driver, in the place of what tools/build_gpu.py makes. The environment's
// FP4DIT_TEST_IMAGES says what is wrong with them: "none" or "damaged".

#include <cstdlib>
#include <cstring>

#include "gpu/driver/image.h"

namespace fp4dit::gpu {
namespace {

// "image of a test  ", by compress() of tools/build_gpu.py.
constexpr uint8_t kBlock[] = {0x00, 0x34, 0x9b, 0x48, 0x47, 0x57, 0x09, 0x1f, 0x63, 0xe7,
                              0xa0, 0xe9, 0xcd, 0x5c, 0x09, 0x4a, 0xa9, 0x84, 0xae, 0xf2,
                              0x6f, 0x52, 0xff, 0xff, 0xf3, 0x03, 0x00, 0x00};
constexpr size_t kLoaded = 17;
constexpr Stream kStream = {0, sizeof(kBlock), kLoaded};
constexpr Image kImages[] = {{"all", 75, false, kStream, 0, kLoaded},
                             {"all", 80, false, kStream, 0, kLoaded - 1},
                             {"all", 80, true, kStream, 0, kLoaded}};
constexpr Image kDamaged[] = {{"all", 75, true, {0, sizeof(kBlock) / 2, kLoaded}, 0, kLoaded}};

}  // namespace

Images EmbeddedImages() {
  const char* const wrong = std::getenv("FP4DIT_TEST_IMAGES");
  if (wrong != nullptr && std::strcmp(wrong, "none") == 0) return {nullptr, 0, nullptr};
  if (wrong != nullptr && std::strcmp(wrong, "damaged") == 0) return {kDamaged, 1, kBlock};
  return {kImages, sizeof(kImages) / sizeof(kImages[0]), kBlock};
}

}  // namespace fp4dit::gpu
