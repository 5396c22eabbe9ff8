// What the JSON files of a PixArt bundle say about generating an image.

#ifndef FP4DIT_EXAMPLES_BUNDLE_H_
#define FP4DIT_EXAMPLES_BUNDLE_H_

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "json_file.h"

namespace example {

// A step of the sampler: x[i+1] = sum_j sample[j] * x[i-j] + output[j] * o[i-j]  +  noise * z[i],
// with o[i] the prediction given input * x[i], and x[0] the first noise times Bundle::initial.
struct Weights {
  std::vector<double> sample, output;  // of the latest sample or output, and those before
};
struct Step : Weights {
  float timestep;              // what the transformer is told
  double input;                // weight of x[i] in what the transformer is given
  double noise;                // weight of fresh noise
  std::vector<double> levels;  // weights of an image's latents and of noise in x[i]; may be empty
  std::vector<Weights> begun;  // in place of the step's own, by how many steps were taken before

  const Weights& After(size_t before) const {
    return before < begun.size() ? begun[before] : *this;
  }
};

struct Bundle {
  explicit Bundle(const std::filesystem::path& place) : folder(place) {
    if (!std::filesystem::is_directory(folder)) {
      throw Error(folder.u8string() + " is no folder: expected a bundle of fp4dit-onnx export");
    }
    const std::string pipeline = JsonFile(folder / "model_index.json").Text("/_class_name");
    if (pipeline.rfind("PixArt", 0) != 0) {
      throw Error(folder.u8string() + " is a " + pipeline + ": this example runs PixArt only");
    }
    const JsonFile manifest(folder / "quantization.json");
    const JsonFile transformer(folder / "transformer" / "config.json");
    const JsonFile decoder(folder / "vae_decoder" / "config.json");
    if (!decoder["/block_out_channels"].is_array()) decoder.Fail("/block_out_channels", "a list");
    const size_t blocks = decoder["/block_out_channels"].size();
    if (blocks < 1 || blocks > 8) decoder.Fail("/block_out_channels", "1 to 8 numbers");
    const size_t patch = transformer.Whole("/patch_size", 1, 64);
    const size_t pixels = size_t{1} << (blocks - 1);  // a latent's side
    // As far as the transformer's positions reach, where it stores them.
    const size_t most = manifest["/largest_size"].is_null()
                            ? kLargestSize
                            : manifest.Whole("/largest_size", 1, kLargestSize);
    for (const char* side : {"/sampling/height", "/sampling/width"}) {
      const size_t multiple = pixels * patch;
      if (manifest.Whole(side, 1, most) % multiple != 0) {
        manifest.Fail(side, "a multiple of " + std::to_string(multiple));
      }
    }
    height = manifest.Whole("/sampling/height", 1, most);
    width = manifest.Whole("/sampling/width", 1, most);
    rows = height / pixels;
    columns = width / pixels;
    channels = transformer.Whole("/in_channels", 1, 256);
    guidance = static_cast<float>(manifest.Number("/sampling/guidance", 0, 1000));
    text_length = manifest.Whole("/sampling/max_sequence_length", 1, 4096);
    scaling = static_cast<float>(decoder.Number("/scaling_factor", 1e-6, 1e6));
    if (!decoder["/shift_factor"].is_null()) {
      shift = static_cast<float>(decoder.Number("/shift_factor", -1e6, 1e6));
    }
    ReadSteps(JsonFile(folder / "scheduler" / "steps.json"));
  }

  std::filesystem::path Model(const char* part) const { return folder / part / "model.onnx"; }
  bool guided() const { return guidance > 1; }
  // Rows of the transformer's batch: with guidance the empty prompt's and the prompt's.
  int64_t batch() const { return guided() ? 2 : 1; }
  size_t latents() const { return channels * rows * columns; }
  std::vector<int64_t> LatentShape(int64_t pictures) const {
    return {pictures, static_cast<int64_t>(channels), static_cast<int64_t>(rows),
            static_cast<int64_t>(columns)};
  }

  std::filesystem::path folder;
  size_t height, width;            // of the image, in pixels
  size_t channels, rows, columns;  // of the latents
  size_t text_length;              // tokens that a prompt is padded or cut to
  float guidance;                  // weight of classifier-free guidance; at most 1 means none
  float scaling, shift = 0;        // of the latents that the decoder takes
  double initial = 1;              // weight of the first noise in x[0]
  std::vector<Step> steps;

 private:
  static constexpr size_t kMostTaps = 8;        // samples that a step may look at
  static constexpr size_t kLargestSize = 8192;  // of an image's side, in pixels

  void ReadSteps(const JsonFile& table) {
    const bool scaled = table.Whole("/format_version", 1, 2) > 1;
    const size_t count = table.Whole("/steps", 1, 1000);
    const std::vector<double> timesteps = table.Numbers("/timesteps", count);
    const std::vector<double> noise = table.Numbers("/noise", count);
    std::vector<double> input(count, 1);
    if (scaled) {
      initial = table.Number("/initial", 0, 1e6);
      input = table.Numbers("/input", count);
    }
    for (const char* key : {"/sample", "/output"}) {
      if (table[key].size() != count) table.Fail(key, "a list of " + std::to_string(count));
    }
    const size_t taps = table["/sample/0"].size(), begun = table["/begun"].size();
    if (taps < 1 || taps > kMostTaps) table.Fail("/sample/0", "a list of 1 to 8");
    if (begun > kMostTaps) table.Fail("/begun", "a list of at most 8");
    const auto weights = [&](const std::string& place, const std::string& index) -> Weights {
      return {table.Numbers(place + "/sample" + index, taps),
              table.Numbers(place + "/output" + index, taps)};
    };
    for (size_t i = 0; i < count; ++i) {
      const std::string index = "/" + std::to_string(i);
      Step step{weights("", index), static_cast<float>(timesteps[i]), input[i], noise[i], {}, {}};
      if (!table["/levels"].is_null()) step.levels = table.Numbers("/levels" + index, 2);
      for (size_t j = 0; j < begun; ++j) {
        step.begun.push_back(weights("/begun/" + std::to_string(j), index));
      }
      steps.push_back(step);
    }
  }
};

}  // namespace example

#endif  // FP4DIT_EXAMPLES_BUNDLE_H_
