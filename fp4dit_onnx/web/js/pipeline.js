/**
 * Text or class to image from a bundle, with any of ONNX Runtime's JavaScript packages.
 *
 * The same steps as `fp4dit_onnx.Pipeline`, one image at a time: the models run through the
 * function bodies that they carry, and `scheduler/steps.json` says how a step combines samples,
 * outputs and noise.
 */

import { VAE_ENCODER, startOf, stepsTaken } from "./beginning.js";
import { doubles, encodersOf, familyOfPipeline, feedOf, pack, unpack } from "./families.js";
import { initialLatents, stepNoise } from "./noise.js";
import { before, ends } from "./sources.js";
import { nextSample, noised, scaled } from "./steps.js";
import { Tokens } from "./tokens.js";

/**
 * @typedef {import("./sources.js").Value} Value
 * @typedef {import("./sources.js").Request} Request
 * @typedef {import("./beginning.js").Pixels} Pixels
 * @typedef {import("./beginning.js").Start} Start
 * @typedef {import("./steps.js").StepTable} StepTable
 *
 * @typedef {object} Files where a bundle comes from.
 * @property {(name: string) => boolean} has whether the bundle has a file, by its path in there.
 * @property {(name: string) => Promise<any>} json the content of a JSON file.
 * @property {(steps: number) => Promise<StepTable>} steps the table of a run.
 * @property {(folder: string) => Promise<{model: string | Uint8Array, externalData?: object[]}>}
 *   model what InferenceSession.create takes.
 *
 * @typedef {object} Picture
 * @property {number} width
 * @property {number} height
 * @property {Uint8ClampedArray} rgba [height, width, 4].
 */

/**
 * ONNX Runtime fuses DequantizeLinear and MatMul to MatMulNBits and, unless this is 0, quantizes
 * the activations once more on the way.
 */
const EXACT_MATMUL = { session: { qdq_matmulnbits_accuracy_level: "0" } };

const ERRORS_ONLY = 3;

/** As in `fp4dit_onnx/runtime/sampling.py` and `fp4dit_onnx/values.py`. */
const LARGEST_GUIDANCE = 1000;
const LARGEST_SEED = 2n ** 64n - 1n;

/** Thrown where the one who asked has taken it back. */
export class Cancelled extends Error {}

/** A bundle, ready to generate images. */
export class Pipeline {
  /**
   * @param {object} parts
   * @param {any} parts.ort the package: InferenceSession and Tensor.
   * @param {any} parts.Tokenizer class of the package @huggingface/tokenizers.
   * @param {Files} parts.files
   * @param {object} [parts.sessionOptions] besides those that every session gets.
   * @param {(what: string) => void} [parts.onLoad] called before each part is loaded.
   * @returns {Promise<Pipeline>}
   */
  static async open({ ort, Tokenizer, files, sessionOptions = {}, onLoad = () => {} }) {
    const pipeline = new Pipeline(ort, files);
    const { sampling, largest_size: largestSize } = await files.json("quantization.json");
    pipeline.largestSize = largestSize ?? Infinity;
    pipeline.modelIndex = await files.json("model_index.json");
    pipeline.family = familyOfPipeline(pipeline.modelIndex._class_name);
    const { max_sequence_length: maxSequenceLength, ...others } = sampling;
    pipeline.defaults = { ...others, maxSequenceLength };
    pipeline.transformerConfig = await files.json("transformer/config.json");
    pipeline.vaeConfig = await files.json("vae_decoder/config.json");
    pipeline.encoders = encodersOf(pipeline.family, pipeline.modelIndex);
    for (const encoder of pipeline.encoders) {
      const folder = encoder.replace("text_encoder", "tokenizer");
      const description = await files.json(`${folder}/tokenizer.json`);
      const settings = `${folder}/tokenizer_config.json`;
      const chosen = files.has(settings) ? await files.json(settings) : {};
      pipeline.tokens[encoder] = new Tokens(Tokenizer, description, chosen);
    }
    const options = { extra: EXACT_MATMUL, logSeverityLevel: ERRORS_ONLY, ...sessionOptions };
    pipeline.load = async (name) => {
      onLoad(name);
      const start = performance.now();
      const { model, externalData } = await files.model(name);
      const read = performance.now();
      const all = externalData === undefined ? options : { ...options, externalData };
      pipeline.sessions[name] = await ort.InferenceSession.create(model, all);
      // For a browser's profiler, and tools/draw_in_browser.py.
      performance.measure(`read ${name}`, { start, end: read });
      performance.measure(`load ${name}`, { start: read });
    };
    for (const name of [...pipeline.encoders, "transformer", "vae_decoder"]) {
      await pipeline.load(name);
    }
    return pipeline;
  }

  /**
   * @param {any} ort
   * @param {Files} files
   * @private use `open`.
   */
  constructor(ort, files) {
    this.ort = ort;
    this.files = files;
    /** Pixels along a side that the transformer's positions reach. */
    this.largestSize = Infinity;
    /** @type {Record<string, any>} */
    this.sessions = {};
    /** @type {Record<string, Tokens>} */
    this.tokens = {};
    /** @type {string[]} Folders of the text encoders. */
    this.encoders = [];
    /** @type {(name: string) => Promise<void>} makes the session of a part. */
    this.load = async () => {};
  }

  /** @returns {boolean} whether the bundle has what begins with images. */
  get begins() {
    return this.files.has(`${VAE_ENCODER}/model.onnx`);
  }

  /** Pixels a latent, along one side. */
  get scaleFactor() {
    const { block_out_channels: own, encoder_block_out_channels: other } = this.vaeConfig;
    return 2 ** ((own ?? other).length - 1);
  }

  /** What the VAE multiplied its latents by, and what it subtracted before. */
  get scaling() {
    const { scaling, shift } = this.family.latents;
    return {
      scaling: Math.fround(this.vaeConfig.scaling_factor || scaling),
      shift: Math.fround(this.vaeConfig.shift_factor || shift),
    };
  }

  /** Latents a token of the transformer, along one side, where it does not make them itself. */
  get packing() {
    return this.family.latents.packing;
  }

  /** What height and width are multiples of, in pixels. */
  get sizeMultiple() {
    return this.scaleFactor * (this.transformerConfig.patch_size ?? 1) * this.packing;
  }

  /**
   * @param {Partial<import("./sources.js").Sampling>} changes
   * @returns {import("./sources.js").Sampling} the bundle's settings with the changes.
   */
  settings(changes) {
    const given = Object.entries(changes).filter(([, value]) => value != null);
    const sampling = { ...this.defaults, ...Object.fromEntries(given) };
    if (!Number.isInteger(sampling.steps) || sampling.steps < 1) {
      throw new Error(`Steps are ${sampling.steps}: expected a whole number from 1.`);
    }
    if (!(sampling.guidance >= 0 && sampling.guidance <= LARGEST_GUIDANCE)) {
      throw new Error(
        `Guidance is ${sampling.guidance}: expected a number from 0 to ${LARGEST_GUIDANCE}.`,
      );
    }
    const multiple = this.sizeMultiple;
    for (const side of ["height", "width"]) {
      const size = sampling[side];
      if (!(size >= multiple) || size % multiple !== 0) {
        throw new Error(`The ${side} is ${size}: expected a positive multiple of ${multiple}.`);
      }
      if (size > this.largestSize) {
        throw new Error(
          `The ${side} is ${size}: expected at most ${this.largestSize}, the limit of the model's ` +
            "position table.",
        );
      }
    }
    return sampling;
  }

  /**
   * One image.
   * @param {string} prompt of the image; for DiT a class, by name or number.
   * @param {object} [options]
   * @param {string} [options.negativePrompt] what the image should not show.
   * @param {bigint} [options.seed] of the noise, 0 to 2^64 - 1.
   * @param {Partial<import("./sources.js").Sampling>} [options.sampling] changes.
   * @param {Pixels | null} [options.image] to begin with in place of noise alone.
   * @param {number} [options.strength] how much of it is changed, above 0 and at most 1.
   * @param {Pixels | null} [options.mask] white where the image is made anew, black where it stays.
   * @param {(done: number, of: number) => void | Promise<void>} [options.onStep] called after each
   *   step and waited for.
   * @param {() => boolean} [options.cancelled] asked before each step.
   * @returns {Promise<Picture>}
   */
  async draw(prompt, options = {}) {
    const { negativePrompt = "", seed = 0n, onStep = () => {}, cancelled = () => false } = options;
    const sampling = this.settings(options.sampling ?? {});
    if (seed < 0n || seed > LARGEST_SEED) {
      throw new Error(`The seed is ${seed}: expected a whole number from 0 to ${LARGEST_SEED}.`);
    }
    /** @type {Request} */
    const request = {
      prompt,
      negativePrompt,
      sampling,
      guided: doubles(this.family, sampling.guidance),
      transformerConfig: this.transformerConfig,
      modelIndex: this.modelIndex,
    };
    const start = await startOf(this, options, sampling, seed);
    const table = await this.files.steps(sampling.steps);
    const fixed = await feedOf(this.family, request, (...asked) => this.encode(...asked));
    const latents = await this.sample(request, fixed, table, { seed, start, onStep, cancelled });
    if (!latents.data.every(Number.isFinite)) {
      throw new Error(
        "The transformer gave numbers that are not finite: export the bundle again with another " +
          "recipe.",
      );
    }
    return this.decode(latents);
  }

  /**
   * @param {import("./sources.js").Sampling} sampling
   * @returns {number[]} the shape of one image's latents, [1, C, H, W].
   */
  latentDims({ height, width }) {
    const channels = this.transformerConfig.in_channels / this.packing ** 2;
    return [1, channels, height / this.scaleFactor, width / this.scaleFactor];
  }

  /**
   * @param {Request} request
   * @param {Record<string, Value>} fixed inputs that no step changes.
   * @param {StepTable} table
   * @param {object} run
   * @param {bigint} run.seed
   * @param {Start | null} run.start what it begins with in place of noise alone.
   * @param {(done: number, of: number) => void | Promise<void>} run.onStep
   * @param {() => boolean} run.cancelled
   * @returns {Promise<Value>} denoised latents, [1, C, H, W].
   */
  async sample(request, fixed, table, { seed, start, onStep, cancelled }) {
    const dims = this.latentDims(request.sampling);
    const count = dims.reduce((a, b) => a * b);
    const { initial = 1, input = table.timesteps.map(() => 1) } = table;
    const noise = initialLatents(seed, count);
    const taken = start === null ? table.steps : stepsTaken(table.steps, start.strength);
    const first = table.steps - taken;
    let samples = [
      start === null ? scaled(noise, initial) : noised(table, first, start.latents, noise),
    ]; // the newest first
    /** @type {Float32Array[]} */
    let outputs = [];
    for (let done = 0; done < taken; done++) {
      if (cancelled()) throw new Cancelled();
      const i = first + done;
      const given = scaled(samples[0], input[i]);
      const output = await this.predict(given, dims, table.timesteps[i], fixed, request);
      outputs = [output, ...outputs].slice(0, table.output[i].length);
      const fresh = table.noise[i] === 0 ? null : stepNoise(seed, done, count);
      const weights = (start !== null && table.begun?.[done]) || table;
      let next = nextSample(table, weights, i, samples, outputs, fresh);
      if (start !== null && start.mask !== null) {
        const { latents, mask } = start;
        const kept = done + 1 === taken ? latents : noised(table, i + 1, latents, noise);
        next = next.map((value, k) => (mask[k % mask.length] ? value : kept[k]));
      }
      samples = [next, ...samples].slice(0, table.sample[i].length);
      await onStep(done + 1, taken);
    }
    return { type: "float32", data: samples[0], dims };
  }

  /**
   * @param {Float32Array} latents of one image.
   * @param {number[]} dims their shape, [1, C, H, W].
   * @param {number} timestep
   * @param {Record<string, Value>} fixed
   * @param {Request} request
   * @returns {Promise<Float32Array>} the model's output after guidance, without the variance half.
   */
  async predict(latents, dims, timestep, fixed, request) {
    const rows = request.guided ? 2 : 1;
    const given = pack(latents, dims, this.packing);
    const twice = new Float32Array(rows * latents.length);
    for (let row = 0; row < rows; row++) twice.set(given.data, row * latents.length);
    const { dtype, divisor, reversed_from: from } = this.family.timestep;
    const told = (from === null ? timestep : from - timestep) / divisor;
    const time =
      dtype === "int64"
        ? new BigInt64Array(rows).fill(BigInt(told))
        : new Float32Array(rows).fill(told);
    const found = await this.run("transformer", {
      ...fixed,
      hidden_states: { type: "float32", data: twice, dims: [rows, ...given.dims.slice(1)] },
      timestep: { type: dtype, data: time, dims: [rows] },
    });
    const output = Object.values(found)[0];
    const size = output.data.length / rows;
    const count = latents.length; // the rest of a row, if any, is the variance
    const sign = from === null ? 1 : -1;
    if (!request.guided) {
      return unpack(scaled(output.data.slice(0, count), sign), dims, this.packing);
    }
    const halves = [output.data.subarray(0, count), output.data.subarray(size, size + count)];
    const [without, guided] = this.family.guidance.negative_first ? halves : halves.reverse();
    const weight = Math.fround(request.sampling.guidance + this.family.guidance.added);
    const combined = without.map((/** @type {number} */ base, /** @type {number} */ i) => {
      return base + Math.fround(weight * Math.fround(guided[i] - base));
    });
    return unpack(scaled(combined, sign), dims, this.packing);
  }

  /**
   * @param {import("./sources.js").Text} text
   * @param {number} length tokens that each of them is padded or cut to.
   * @param {string[]} texts
   * @returns {Promise<import("./sources.js").Encoded>}
   */
  async encode(text, length, texts) {
    const tokens = this.tokens[text.encoder];
    const first = before(text, this.modelIndex);
    const all = length + (first ? tokens.length(first) - 2 : 0);
    const { ids, mask } = tokens.encode(texts.map((one) => first + one), all);
    const dims = [texts.length, all];
    const told = text.masked ? mask : new BigInt64Array(mask.length).fill(1n);
    const found = await this.run(text.encoder, {
      input_ids: { type: "int64", data: ids, dims },
      attention_mask: { type: "int64", data: told, dims },
    });
    const states = found[text.output];
    if (states === undefined) {
      const given = Object.keys(found).join(", ");
      throw new Error(
        `${text.encoder} gives ${given}: expected ${text.output} among them; export the bundle again`,
      );
    }
    const pooled = found.text_embeds ?? found.pooler_output;
    /** @type {Value} */
    const real = { type: "int64", data: mask, dims };
    if (!first) return { states, mask: real, pooled };
    return { states: ends(states, length), mask: ends(real, length) };
  }

  /**
   * @param {Value} latents [1, C, H, W].
   * @returns {Promise<Picture>}
   */
  async decode(latents) {
    const { scaling, shift } = this.scaling;
    const data = latents.data.map((x) => Math.fround(x / scaling) + shift);
    const found = await this.run("vae_decoder", { latent_sample: { ...latents, data } });
    const { data: pixels, dims } = Object.values(found)[0]; // [1, 3, height, width], -1 .. 1
    const [, , height, width] = dims;
    const rgba = new Uint8ClampedArray(height * width * 4).fill(255);
    for (let i = 0; i < 3 * height * width; i++) {
      const value = Math.fround(Math.min(Math.max(Math.fround(pixels[i] / 2 + 0.5), 0), 1) * 255);
      const place = i % (height * width);
      rgba[4 * place + Math.floor(i / (height * width))] = value; // rounds ties to even
    }
    return { width, height, rgba };
  }

  /**
   * @param {string} name of the part.
   * @param {Record<string, Value>} feed more than it declares may be in there.
   * @returns {Promise<Record<string, any>>} its outputs by name; data lie in JavaScript's memory.
   */
  async run(name, feed) {
    const session = this.sessions[name];
    const missing = session.inputNames.filter((/** @type {string} */ input) => !(input in feed));
    if (missing.length > 0) {
      throw new Error(
        `${name} needs the input ${missing[0]}, which this version does not feed: export the ` +
          "bundle again.",
      );
    }
    const tensors = session.inputNames.map((/** @type {string} */ input) => {
      const { type, data, dims } = feed[input];
      return [input, new this.ort.Tensor(type, data, dims)];
    });
    const start = performance.now();
    const found = await session.run(Object.fromEntries(tensors));
    performance.measure(`run ${name}`, { start });
    return found;
  }

  /** Give the memory of all parts back. */
  async close() {
    await Promise.all(Object.values(this.sessions).map((session) => session.release()));
    this.sessions = {};
  }
}
