#include "gpu/driver/image.h"

namespace fp4dit::gpu {

#if defined(FP4DIT_GPU_IMAGES)

namespace {
#include FP4DIT_GPU_IMAGES
}  // namespace

Images EmbeddedImages() {
  return {kImages, sizeof(kImages) / sizeof(kImages[0]), reinterpret_cast<const uint8_t*>(kWords)};
}

#else

Images EmbeddedImages() { return {nullptr, 0, nullptr}; }

#endif

}  // namespace fp4dit::gpu
