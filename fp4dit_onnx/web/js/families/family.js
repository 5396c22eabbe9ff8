/**
 * The description of a family, and what several of them share; see `runtime/families` in Python.
 *
 * @typedef {object} Value an array that a model takes or gives.
 * @property {"float32" | "int64"} type
 * @property {Float32Array | BigInt64Array} data
 * @property {readonly number[]} dims
 *
 * @typedef {object} Request one picture.
 * @property {string} prompt
 * @property {string} negativePrompt what guidance leads away from.
 * @property {Sampling} sampling
 * @property {boolean} guided whether the transformer is called with and without the condition.
 * @property {any} transformerConfig diffusers' config of the transformer.
 * @property {any} modelIndex the content of model_index.json.
 *
 * @typedef {object} Sampling
 * @property {number} steps calls of the transformer.
 * @property {number} guidance weight of classifier-free guidance; at most 1 means none.
 * @property {number} height in pixels.
 * @property {number} width in pixels.
 * @property {number} maxSequenceLength tokens of a prompt, where the family lets one choose.
 *
 * @typedef {object} Text how a family has texts encoded.
 * @property {string} encoder folder of the text encoder.
 * @property {number} length tokens that every text is padded or cut to.
 *
 * @typedef {object} Encoded
 * @property {Value} states [texts, length, D].
 * @property {Value} mask [texts, length].
 *
 * @typedef {(text: Text, texts: string[]) => Promise<Encoded>} Encode
 *
 * @typedef {object} Family
 * @property {string[]} pipelines diffusers' class names.
 * @property {string[]} encoders folders of the text encoders.
 * @property {boolean} negativeFirst whether the row without the condition is the first.
 * @property {"float32" | "int64"} timestep type of the timestep.
 * @property {(request: Request, encode: Encode) => Promise<Record<string, Value>>} conditions the
 *   transformer's inputs that no step changes; more than it declares may be among them.
 */

/**
 * The rows of a request, the negative prompt's first.
 * @param {Request} request
 * @param {Encode} encode
 * @param {Text} text
 * @returns {Promise<Encoded>}
 */
export function encodedRows(request, encode, text) {
  const { guided, negativePrompt, prompt } = request;
  return encode(text, guided ? [negativePrompt, prompt] : [prompt]);
}

/**
 * @param {number[]} row
 * @param {number} rows
 * @returns {Value} `row` as often as there are rows, float32 [rows, row.length].
 */
export function repeated(row, rows) {
  const data = Float32Array.from({ length: rows * row.length }, (_, i) => row[i % row.length]);
  return { type: "float32", data, dims: [rows, row.length] };
}

/**
 * @param {Request} request
 * @returns {number} rows of the transformer's batch.
 */
export function rowsOf(request) {
  return request.guided ? 2 : 1;
}
