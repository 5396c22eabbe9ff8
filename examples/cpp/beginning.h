// An image to begin with in place of noise alone, and a mask of what is made anew: the arithmetic
// of fp4dit_onnx/runtime/beginning.py.

#ifndef FP4DIT_EXAMPLES_BEGINNING_H_
#define FP4DIT_EXAMPLES_BEGINNING_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "bundle.h"
#include "noise.h"
#include "options.h"
#include "ort.h"
#include "picture.h"

namespace example {

struct Start {
  std::vector<float> latents;  // of the image, as they are denoised; empty for noise alone
  std::vector<bool> mask;      // whether one of a channel's latents is made anew; empty for all
};

inline void CheckSize(const std::filesystem::path& file, const Picture& picture,
                      const Bundle& bundle) {
  if (picture.width == bundle.width && picture.height == bundle.height) return;
  throw Error(file.u8string() + " has " + std::to_string(picture.width) + " x " +
              std::to_string(picture.height) + " pixels: expected " + std::to_string(bundle.width) +
              " x " + std::to_string(bundle.height) +
              ", width and height of what is generated; resize it");
}

// White is made anew; the pixel at the corner of each latent's says so, as diffusers takes it.
inline std::vector<bool> ReadMask(const std::filesystem::path& file, const Bundle& bundle) {
  const Picture picture = ReadBmp(file, "a mask");
  CheckSize(file, picture, bundle);
  for (size_t i = 0; i < picture.pixels.size(); i += 3) {
    const uint8_t* const pixel = &picture.pixels[i];
    if (pixel[0] != pixel[1] || pixel[0] != pixel[2]) {
      throw Error(file.u8string() + " has colours: expected a mask in greyscale, white and black");
    }
  }
  std::vector<bool> mask;
  for (size_t row = 0; row < bundle.rows; ++row) {
    for (size_t column = 0; column < bundle.columns; ++column) {
      const size_t y = row * bundle.height / bundle.rows;
      const size_t x = column * bundle.width / bundle.columns;
      mask.push_back(picture.pixels[3 * (y * bundle.width + x)] >= 128);
    }
  }
  return mask;
}

// What the options ask to begin with; `runtime` runs the VAE's encoder.
inline Start Begin(const Runtime& runtime, const Bundle& bundle, const Options& options) {
  if (options.image.empty()) return {};
  const Picture picture = ReadBmp(options.image, "an image to begin with");
  CheckSize(options.image, picture, bundle);
  Start start;
  if (!options.mask.empty()) start.mask = ReadMask(options.mask, bundle);
  if (bundle.steps.front().levels.empty()) {
    throw Error((bundle.folder / "scheduler" / "steps.json").u8string() +
                " has no levels, which --image needs: export the bundle again");
  }
  const std::filesystem::path model = bundle.Model("vae_encoder");
  if (!std::filesystem::is_regular_file(model)) {
    throw Error(model.u8string() + " not found, which --image needs: export the bundle again");
  }
  const size_t size = bundle.height * bundle.width, count = bundle.latents();
  Floats planes = {{1, 3, static_cast<int64_t>(bundle.height), static_cast<int64_t>(bundle.width)},
                   std::vector<float>(3 * size)};
  for (size_t i = 0; i < 3 * size; ++i) {
    planes.values[i] = 2 * (static_cast<float>(picture.pixels[i % size * 3 + i / size]) / 255) - 1;
  }
  const Session encoder(runtime, model, {"", options.threads});
  // Means and logarithms of variances, or latents.
  const std::vector<float> found = encoder.Run({{"image", planes}}).values;
  if (found.size() != count && found.size() != 2 * count) {
    throw Error(model.u8string() + ": the output has another size than the latents");
  }
  start.latents.assign(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(count));
  if (found.size() > count) {
    // The words of numpy's SeedSequence(seed, spawn_key=(0,)).
    const std::vector<float> noise =
        StandardNormal({options.seed & UINT32_MAX, options.seed >> 32, 0, 0, 0}, count);
    for (size_t i = 0; i < count; ++i) {
      const double logarithm = std::fmin(std::fmax(found[count + i], -30.0f), 20.0f);
      start.latents[i] += static_cast<float>(std::exp(logarithm / 2)) * noise[i];
    }
  }
  for (float& value : start.latents) value = (value - bundle.shift) * bundle.scaling;
  return start;
}

// How many of the steps are left out at a strength: one at least is taken.
inline size_t FirstStep(size_t steps, double strength) {
  const auto all = static_cast<double>(steps);
  return std::min(static_cast<size_t>(all - all * strength), steps - 1);
}

// The image's sample before a step.
inline std::vector<float> Noised(const Step& step, const std::vector<float>& latents,
                                 const std::vector<float>& noise) {
  const auto kept = static_cast<float>(step.levels[0]), added = static_cast<float>(step.levels[1]);
  std::vector<float> sample(latents.size());
  for (size_t i = 0; i < sample.size(); ++i) sample[i] = kept * latents[i] + added * noise[i];
  return sample;
}

}  // namespace example

#endif  // FP4DIT_EXAMPLES_BEGINNING_H_
