// Generates an image with a PixArt bundle of fp4dit-onnx, without Python: ONNX Runtime runs the
// text encoder, the transformer (its quantized layers in the custom-op library) and the decoder.
//
//   text_to_image --library libfp4dit_ops.so --runtime libonnxruntime.so BUNDLE "red apple" out.bmp
//
// Exit codes: 2 for a request or a bundle that cannot be drawn, 1 for a model that gives numbers
// that are not finite; each with a line on standard error.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "beginning.h"
#include "bundle.h"
#include "noise.h"
#include "options.h"
#include "ort.h"
#include "picture.h"
#include "tokenizer.h"

namespace example {
namespace {

// Token ids and mask of what the image shall show; with guidance preceded by what it leads away
// from, the empty prompt.
Inputs Tokenize(const Bundle& bundle, const Options& options) {
  const Tokenizer tokenizer(bundle.folder / "tokenizer");
  std::vector<std::vector<int64_t>> texts;
  if (bundle.guided()) texts.push_back(tokenizer.Encode("", bundle.text_length));
  texts.push_back(options.ids.empty()
                      ? tokenizer.Encode(Cleaned(options.prompt), bundle.text_length)
                      : options.ids);
  if (texts.back().size() > bundle.text_length) {
    throw Error("--ids has " + std::to_string(texts.back().size()) + " numbers: expected at most " +
                std::to_string(bundle.text_length));
  }
  Integers ids = {{bundle.batch(), static_cast<int64_t>(bundle.text_length)}, {}}, mask = ids;
  for (const std::vector<int64_t>& text : texts) {
    for (size_t i = 0; i < bundle.text_length; ++i) {
      ids.values.push_back(i < text.size() ? text[i] : tokenizer.padding());
      mask.values.push_back(i < text.size() ? 1 : 0);
    }
  }
  return {{"input_ids", ids}, {"attention_mask", mask}};
}

// The transformer's prediction of one step, led by guidance.
std::vector<float> Predict(const Session& transformer, const Bundle& bundle, Inputs inputs,
                           const std::vector<float>& sample, float timestep) {
  const auto count = static_cast<size_t>(bundle.batch());
  Floats latents = {bundle.LatentShape(bundle.batch()), {}};
  for (size_t i = 0; i < count; ++i) {
    latents.values.insert(latents.values.end(), sample.begin(), sample.end());
  }
  inputs["hidden_states"] = latents;
  inputs["timestep"] = Floats{{bundle.batch()}, std::vector<float>(count, timestep)};
  const std::vector<float> output = transformer.Run(std::move(inputs)).values;
  // Behind the prediction some models give a variance, which samplers leave alone.
  const size_t stride = output.size() / count;
  if (output.size() % count != 0 || (stride != sample.size() && stride != 2 * sample.size())) {
    throw Error(bundle.Model("transformer").u8string() +
                ": the output has another size than the latents");
  }
  std::vector<float> prediction(output.begin(), output.begin() + static_cast<long>(sample.size()));
  for (size_t i = 0; count == 2 && i < prediction.size(); ++i) {
    prediction[i] += bundle.guidance * (output[stride + i] - prediction[i]);
  }
  return prediction;
}

// What the transformer is told at every step.
Inputs Conditions(const Session& encoder, const Bundle& bundle, const Inputs& tokens) {
  const auto height = static_cast<float>(bundle.height), width = static_cast<float>(bundle.width);
  Floats resolution = {{bundle.batch(), 2}, {}}, ratio = {{bundle.batch(), 1}, {}};
  for (int64_t i = 0; i < bundle.batch(); ++i) {
    resolution.values.insert(resolution.values.end(), {height, width});
    ratio.values.push_back(static_cast<float>(static_cast<double>(height) / width));
  }
  return {{"encoder_hidden_states", encoder.Run(tokens, "last_hidden_state")},
          {"encoder_attention_mask", tokens.at("attention_mask")},
          {"resolution", resolution},
          {"aspect_ratio", ratio}};
}

std::vector<float> Scaled(std::vector<float> values, double factor) {
  for (float& value : values) value = static_cast<float>(value * factor);
  return values;
}

// Latents of an image, step by step: from noise, or from the image that `start` has.
std::vector<float> Denoise(const Session& transformer, const Bundle& bundle,
                           const Inputs& conditions, const Options& options, const Start& start) {
  const std::vector<Step>& steps = bundle.steps;
  const bool begins = !start.latents.empty();
  const std::vector<float> noise = StandardNormal({options.seed}, bundle.latents());
  const size_t first = begins ? FirstStep(steps.size(), options.strength) : 0;
  std::deque<std::vector<float>> outputs,
      samples = {begins ? Noised(steps[first], start.latents, noise)
                        : Scaled(noise, bundle.initial)};
  for (size_t i = first; i < steps.size(); ++i) {
    const Step& step = steps[i];
    const std::vector<float> given = Scaled(samples[0], step.input);
    outputs.push_front(Predict(transformer, bundle, conditions, given, step.timestep));
    const Weights& weights = begins ? step.After(i - first) : step;
    std::vector<double> next(bundle.latents());
    for (size_t j = 0; j < std::min(weights.sample.size(), samples.size()); ++j) {
      for (size_t k = 0; k < next.size(); ++k) {
        next[k] += weights.sample[j] * samples[j][k];
        next[k] += weights.output[j] * outputs[j][k];
      }
    }
    if (step.noise != 0) {
      const std::vector<float> fresh = StandardNormal({options.seed, i - first + 1}, next.size());
      for (size_t k = 0; k < next.size(); ++k) next[k] += step.noise * fresh[k];
    }
    samples.emplace_front(next.begin(), next.end());
    if (!start.mask.empty()) {
      const bool last = i + 1 == steps.size();
      const std::vector<float> kept =
          last ? start.latents : Noised(steps[i + 1], start.latents, noise);
      for (size_t k = 0; k < kept.size(); ++k) {
        if (!start.mask[k % start.mask.size()]) samples[0][k] = kept[k];
      }
    }
    if (samples.size() > step.sample.size()) samples.pop_back();
    if (outputs.size() > step.output.size()) outputs.pop_back();
  }
  return samples[0];
}

// The image's pixels, rows from the top, red, green and blue each.
std::vector<uint8_t> Decode(const Session& decoder, const Bundle& bundle,
                            const std::vector<float>& latents) {
  Floats input = {bundle.LatentShape(1), {}};
  for (const float value : latents) input.values.push_back(value / bundle.scaling + bundle.shift);
  const std::vector<float> planes = decoder.Run({{"latent_sample", input}}).values;
  const size_t size = bundle.height * bundle.width;
  if (planes.size() != 3 * size) {
    throw Error(bundle.Model("vae_decoder").u8string() +
                ": the output has another size than the image");
  }
  std::vector<uint8_t> pixels(planes.size());
  for (size_t i = 0; i < planes.size(); ++i) {
    const float level = std::fmin(std::fmax(planes[i] / 2 + 0.5f, 0.0f), 1.0f) * 255;
    pixels[i % size * 3 + i / size] = static_cast<uint8_t>(std::nearbyint(level));
  }
  return pixels;
}

int Draw(const Options& options) {
  const Bundle bundle(options.bundle);
  const Inputs tokens = Tokenize(bundle, options);
  const Runtime runtime(options.runtime);
  const SessionOptions with_library = {options.library, options.threads};
  const Start start = Begin(runtime, bundle, options);
  // Each session ends with its expression: one model at a time is in memory.
  const Inputs conditions =
      Conditions(Session(runtime, bundle.Model("text_encoder"), with_library), bundle, tokens);
  const std::vector<float> latents =
      Denoise(Session(runtime, bundle.Model("transformer"), with_library), bundle, conditions,
              options, start);
  for (const float value : latents) {
    if (std::isfinite(value)) continue;
    std::fprintf(stderr, "error: %s gave numbers that are not finite\n",
                 bundle.Model("transformer").u8string().c_str());
    return 1;
  }
  const Session decoder(runtime, bundle.Model("vae_decoder"), {"", options.threads});
  WriteBmp(options.picture, Decode(decoder, bundle, latents), bundle.height, bundle.width);
  return 0;
}

}  // namespace
}  // namespace example

int main(int count, char** arguments) {
  try {
    return example::Draw(example::ParseOptions(example::Arguments(count, arguments)));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", example::Shown(error.what()).c_str());
    return 2;
  }
}
