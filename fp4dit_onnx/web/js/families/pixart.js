/** PixArt-alpha and PixArt-Sigma: one T5 encoder, lower-cased prompts, the picture's size. */

import { encodedRows, repeated, rowsOf } from "./family.js";

/** What Python's str.strip removes; trim() differs in a few control characters. */
const SPACES =
  "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const OUTER_SPACES = new RegExp(`^${SPACES}+|${SPACES}+$`, "g");

/**
 * @param {string} text
 * @returns {string}
 */
function cleaned(text) {
  return text.toLowerCase().replace(OUTER_SPACES, "");
}

/** @type {import("./family.js").Family} */
export const PIXART = {
  pipelines: ["PixArtAlphaPipeline", "PixArtSigmaPipeline"],
  encoders: ["text_encoder"],
  negativeFirst: true,
  timestep: "float32",
  async conditions(request, encode) {
    const cleanedRequest = {
      ...request,
      prompt: cleaned(request.prompt),
      negativePrompt: cleaned(request.negativePrompt),
    };
    const { height, width, maxSequenceLength } = request.sampling;
    const text = { encoder: "text_encoder", length: maxSequenceLength };
    const encoded = await encodedRows(cleanedRequest, encode, text);
    return {
      encoder_hidden_states: encoded.states,
      encoder_attention_mask: encoded.mask,
      resolution: repeated([height, width], rowsOf(request)),
      aspect_ratio: repeated([height / width], rowsOf(request)),
    };
  },
};
