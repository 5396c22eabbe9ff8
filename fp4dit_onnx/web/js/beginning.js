/**
 * An image to begin with: its pixels, what the VAE's encoder makes of them, and what a mask keeps.
 *
 * The functions of `fp4dit_onnx/runtime/beginning.py`.
 *
 * @typedef {object} Pixels an image as it was decoded.
 * @property {number} width
 * @property {number} height
 * @property {ArrayLike<number>} rgba bytes, [height, width, 4].
 *
 * @typedef {object} Original
 * @property {Pixels | null} [image] to begin with.
 * @property {number} [strength]
 * @property {Pixels | null} [mask] white where the image is made anew.
 *
 * @typedef {object} Start what denoising begins with in place of noise alone.
 * @property {Float32Array} latents of the image, as they are denoised, [1, C, H, W].
 * @property {number} strength share of the steps that are taken, above 0 and at most 1.
 * @property {boolean[] | null} mask whether the image is made anew, [H, W]; null for everywhere.
 */

import { encoderNoise } from "./noise.js";

export const VAE_ENCODER = "vae_encoder";

/** As in `fp4dit_onnx/runtime/beginning.py`. */
const STRENGTH = 0.6;
const WHITE = 128;
/** diffusers keeps a VAE's logarithms of variances within these. */
const LARGEST_LOG_VARIANCE = 20;
const LEAST_LOG_VARIANCE = -30;

/**
 * @param {import("./pipeline.js").Pipeline} pipeline
 * @param {Original} original
 * @param {import("./sources.js").Sampling} sampling
 * @param {bigint} seed
 * @returns {Promise<Start | null>} what denoising begins with, null for noise alone.
 */
export async function startOf(pipeline, original, sampling, seed) {
  const { image = null, strength = STRENGTH, mask = null } = original;
  if (image === null) {
    if (mask === null) return null;
    throw new Error("There is a mask and no image: expected the image that it is of.");
  }
  const dims = pipeline.latentDims(sampling);
  const pixels = pixelsOf(image, sampling);
  const kept = mask === null ? null : maskOf(mask, sampling, dims.slice(2));
  stepsTaken(sampling.steps, strength);
  if (!pipeline.begins) {
    throw new Error("The bundle has no vae_encoder, which images to begin with need: export it again.");
  }
  if (!(VAE_ENCODER in pipeline.sessions)) await pipeline.load(VAE_ENCODER);
  const given = [1, 3, sampling.height, sampling.width];
  const found = await pipeline.run(VAE_ENCODER, {
    image: { type: "float32", data: pixels, dims: given },
  });
  const count = dims.reduce((a, b) => a * b);
  const { scaling, shift } = pipeline.scaling;
  const latents = drawn(Object.values(found)[0].data, seed, count).map(
    (value) => Math.fround(value - shift) * scaling,
  );
  return { latents, strength, mask: kept };
}

/**
 * @param {number} steps
 * @param {number} strength
 * @returns {number} how many of the steps are taken: one at least.
 */
export function stepsTaken(steps, strength) {
  if (!(strength > 0 && strength <= 1)) {
    throw new Error(`The strength is ${strength}: expected more than 0 and at most 1.`);
  }
  return steps - Math.min(Math.trunc(steps - steps * strength), steps - 1);
}

/**
 * @param {Pixels} image
 * @param {{height: number, width: number}} sampling
 * @returns {Float32Array} what the VAE's encoder takes, -1 .. 1, [1, 3, H, W].
 */
function pixelsOf(image, sampling) {
  checkSize("image", image, sampling);
  const { rgba } = image;
  const count = rgba.length / 4;
  const planes = new Float32Array(3 * count);
  for (let i = 0; i < count; i++) {
    if (rgba[4 * i + 3] !== 255) {
      throw new Error("The image is transparent in places: expected RGB; save it without transparency.");
    }
    for (let c = 0; c < 3; c++) planes[c * count + i] = 2 * Math.fround(rgba[4 * i + c] / 255) - 1;
  }
  return planes;
}

/**
 * @param {Pixels} mask white where the image is made anew.
 * @param {{height: number, width: number}} sampling
 * @param {number[]} shape of the latents, H and W.
 * @returns {boolean[]} whether it is, for each of the latents.
 */
function maskOf(mask, sampling, [rows, columns]) {
  checkSize("mask", mask, sampling);
  const { width, height, rgba } = mask;
  for (let i = 0; i < rgba.length; i += 4) {
    if (rgba[i] !== rgba[i + 1] || rgba[i] !== rgba[i + 2] || rgba[i + 3] !== 255) {
      throw new Error("The mask has colours or is transparent: expected greyscale, white and black.");
    }
  }
  // The pixel at the corner of each latent's, as diffusers takes it.
  return Array.from({ length: rows * columns }, (_, i) => {
    const y = Math.floor((Math.floor(i / columns) * height) / rows);
    const x = Math.floor(((i % columns) * width) / columns);
    return rgba[4 * (y * width + x)] >= WHITE;
  });
}

/**
 * @param {string} what
 * @param {Pixels} image
 * @param {{height: number, width: number}} sampling
 */
function checkSize(what, image, { width, height }) {
  if (image.width === width && image.height === height) return;
  throw new Error(
    `The ${what} has ${image.width} x ${image.height} pixels: expected ${width} x ${height}, width ` +
      "and height of what is generated; resize it, or give its size as width and height.",
  );
}

/**
 * @param {Float32Array} parameters means and logarithms of variances, [1, 2 C, H, W]; or latents.
 * @param {bigint} seed
 * @param {number} count of latents.
 * @returns {Float32Array} latents of an image as its VAE gives them, [1, C, H, W].
 */
function drawn(parameters, seed, count) {
  if (parameters.length === count) return parameters;
  const noise = encoderNoise(seed, count);
  return parameters.slice(0, count).map((mean, i) => {
    const kept = Math.max(parameters[count + i], LEAST_LOG_VARIANCE);
    const spread = Math.fround(Math.exp(Math.min(kept, LARGEST_LOG_VARIANCE) / 2));
    return mean + Math.fround(spread * noise[i]);
  });
}
