/**
 * Families of diffusion transformers, as families.json has them: it is generated from the records in
 * `fp4dit_onnx/families`.
 *
 * @typedef {import("./sources.js").Encoded} Encoded
 * @typedef {import("./sources.js").Request} Request
 * @typedef {import("./sources.js").Text} Text
 * @typedef {import("./sources.js").Value} Value
 *
 * @typedef {(text: Text, length: number, texts: string[]) => Promise<Encoded>} Encode
 */

import FAMILIES from "./families.json" with { type: "json" };
import { SOURCES, clean, hasComponent, joined, tokens } from "./sources.js";

/** @typedef {(typeof FAMILIES)[number]} Family */

/**
 * @param {string} pipelineClass diffusers' class.
 * @returns {Family}
 */
export function familyOfPipeline(pipelineClass) {
  const found = FAMILIES.find((family) => family.pipelines.includes(pipelineClass));
  if (found !== undefined) return found;
  const known = FAMILIES.flatMap((family) => family.pipelines).join(", ");
  throw new Error(`model_index.json names the pipeline ${pipelineClass}: expected one of ${known}.`);
}

/**
 * @param {Family} family
 * @param {any} modelIndex the content of model_index.json.
 * @returns {string[]} folders of the text encoders of a pipeline, some of which may be left out.
 */
export function encodersOf({ encoders, optional }, modelIndex) {
  return encoders.filter((name) => !optional.includes(name) || hasComponent(modelIndex, name));
}

/**
 * @param {Family} family
 * @param {number} weight of guidance.
 * @returns {boolean} whether a batch has each image twice.
 */
export function doubles({ guidance }, weight) {
  return guidance.kind === "cfg" && weight + guidance.added > 1;
}

/**
 * @param {Family} family
 * @param {Request} request
 * @param {Encode} encode runs a tokenizer and the text encoder that belongs to it.
 * @returns {Promise<Record<string, Value>>} the transformer's inputs that no step changes; each text
 *   is encoded once.
 */
export async function feedOf({ inputs, guidance }, request, encode) {
  const { prompt, negativePrompt, guided } = request;
  if (negativePrompt && guidance.refusal) {
    throw new Error(`Negative prompt "${negativePrompt}": ${guidance.refusal}; leave it out.`);
  }
  /** @type {(given: any, without: any) => any[]} */
  const inOrder = (given, without) => {
    if (!guided) return [given];
    return guidance.negative_first ? [without, given] : [given, without];
  };
  /**
   * @param {Text} text
   * @returns {Promise<Encoded>}
   */
  const encodedRows = async (text) => {
    const [given, without] = [prompt, negativePrompt].map((one) => clean(text, one));
    const length = tokens(text, request);
    if (!guided) return encode(text, length, [given]);
    const found = text.instruction
      ? await Promise.all([
          encode({ ...text, instruction: "" }, length, [without]),
          encode(text, length, [given]),
        ])
      : [await encode(text, length, [without, given])];
    return picked(found, inOrder(1, 0));
  };
  /** @type {Map<string, Promise<Encoded>>} */
  const known = new Map();
  /** @param {Text} text */
  const encoded = (text) => {
    const key = JSON.stringify(text);
    if (!known.has(key)) known.set(key, encodedRows(text));
    return /** @type {Promise<Encoded>} */ (known.get(key));
  };
  /** @type {Record<string, Value>} */
  const feed = {};
  for (const { name, dims, dtype, source } of inputs) {
    if (source === null) continue;
    feed[name] = await SOURCES[source.kind](source, { request, inOrder, encoded, dims, dtype });
  }
  return feed;
}

/**
 * @param {Encoded[]} parts texts that follow each other.
 * @param {number[]} rows numbers of texts.
 * @returns {Encoded} these texts, in this order.
 */
function picked(parts, rows) {
  /** @param {(Value | undefined)[]} values */
  const pick = (values) => {
    const given = values.filter((value) => value !== undefined);
    if (given.length === 0) return undefined;
    const { type, data, dims } = joined(given, 0);
    const size = data.length / dims[0];
    const pieces = rows.map((row) => data.slice(row * size, (row + 1) * size));
    return joined(
      pieces.map((piece) => ({ type, data: piece, dims: [1, ...dims.slice(1)] })),
      0,
    );
  };
  const [states, mask] = [parts.map((part) => part.states), parts.map((part) => part.mask)].map(pick);
  return /** @type {Encoded} */ ({ states, mask, pooled: pick(parts.map((part) => part.pooled)) });
}

/**
 * Latents as the transformer takes them: squares of `side` as one token each, channels first.
 * @param {Float32Array} latents of one image.
 * @param {number[]} dims [1, C, H, W].
 * @param {number} side 1 leaves them as they are.
 * @returns {{data: Float32Array, dims: number[]}}
 */
export function pack(latents, dims, side) {
  if (side === 1) return { data: latents, dims };
  const [, channels, height, width] = dims;
  const data = latents.slice();
  placesOf(dims, side).forEach((from, to) => (data[to] = latents[from]));
  return { data, dims: [1, (height * width) / side ** 2, channels * side ** 2] };
}

/**
 * @param {Float32Array} packed what `pack` made of latents.
 * @param {number[]} dims those of the latents, [1, C, H, W].
 * @param {number} side
 * @returns {Float32Array} the latents.
 */
export function unpack(packed, dims, side) {
  if (side === 1) return packed;
  const data = packed.slice();
  placesOf(dims, side).forEach((to, from) => (data[to] = packed[from]));
  return data;
}

/**
 * @param {number[]} dims [1, C, H, W].
 * @param {number} side
 * @returns {number[]} place among the latents of each number of the tokens.
 */
function placesOf([, channels, height, width], side) {
  const places = [];
  for (let row = 0; row < height; row += side) {
    for (let column = 0; column < width; column += side) {
      for (let channel = 0; channel < channels; channel++) {
        for (let y = 0; y < side; y++) {
          for (let x = 0; x < side; x++) {
            places.push((channel * height + row + y) * width + column + x);
          }
        }
      }
    }
  }
  return places;
}
