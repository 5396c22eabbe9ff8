/** Hunyuan-DiT: a bilingual BERT and mT5, prompts as they are, and facts about the picture. */

import { encodedRows, repeated, rowsOf } from "./family.js";

/** Height and width of the original picture, as diffusers tells by default. */
const ORIGINAL_SIZE = [1024, 1024];
/** Top and left. */
const CROP = [0, 0];
/** Where the transformer's config does not say. */
const TEXT_LENGTH = 77;
const T5_TEXT_LENGTH = 256;

/** @type {import("./family.js").Family} */
export const HUNYUAN_DIT = {
  pipelines: ["HunyuanDiTPipeline"],
  encoders: ["text_encoder", "text_encoder_2"],
  negativeFirst: true,
  timestep: "float32",
  async conditions(request, encode) {
    const { transformerConfig: config, sampling } = request;
    const length = config.text_len ?? TEXT_LENGTH;
    const t5Length = config.text_len_t5 ?? T5_TEXT_LENGTH;
    const text = await encodedRows(request, encode, { encoder: "text_encoder", length });
    const t5Text = await encodedRows(request, encode, {
      encoder: "text_encoder_2",
      length: t5Length,
    });
    const rows = rowsOf(request);
    const sizes = [...ORIGINAL_SIZE, sampling.height, sampling.width, ...CROP];
    return {
      encoder_hidden_states: text.states,
      text_embedding_mask: text.mask,
      encoder_hidden_states_t5: t5Text.states,
      text_embedding_mask_t5: t5Text.mask,
      image_meta_size: repeated(sizes, rows),
      style: { type: "int64", data: new BigInt64Array(rows), dims: [rows] },
    };
  },
};
