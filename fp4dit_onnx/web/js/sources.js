/**
 * Where a transformer's inputs come from that no denoising step changes.
 *
 * `SOURCES` has the functions of `fp4dit_onnx/families/sources.py` under the same names; their
 * settings are in families.json.
 *
 * @typedef {object} Value an array that a model takes or gives.
 * @property {"float32" | "int64"} type
 * @property {Float32Array | BigInt64Array} data
 * @property {readonly number[]} dims
 *
 * @typedef {object} Request one image.
 * @property {string} prompt
 * @property {string} negativePrompt what the image should not show.
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
 * @typedef {object} Text see `families/request.py`.
 * @property {string} encoder
 * @property {number} length
 * @property {string} key
 * @property {boolean} masked
 * @property {string} output
 * @property {boolean} cleaned
 * @property {string} template
 * @property {boolean} optional
 * @property {boolean} blank
 * @property {string} instruction
 *
 * @typedef {object} Encoded
 * @property {Value} states [texts, length, D].
 * @property {Value} mask [texts, length].
 * @property {Value} [pooled] [texts, P].
 *
 * @typedef {object} Wanted one input.
 * @property {Request} request
 * @property {(given: any, without: any) => any[]} inOrder what each row has, with the condition and
 *   in its absence.
 * @property {(text: Text) => Promise<Encoded>} encoded the rows' texts.
 * @property {(string | number)[]} dims
 * @property {"float32" | "int64"} dtype
 */

/** What Python's str.strip removes; trim() differs in a few control characters. */
const SPACES =
  "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const OUTER_SPACES = new RegExp(`^${SPACES}+|${SPACES}+$`, "g");

/**
 * @param {Text} text
 * @param {string} prompt
 * @returns {string} as the tokenizer is given it.
 */
export function clean(text, prompt) {
  const given = text.cleaned ? prompt.toLowerCase().replace(OUTER_SPACES, "") : prompt;
  return text.template.replace("{}", () => given);
}

/**
 * @param {Text} text
 * @param {Request} request
 * @returns {number} tokens that every text is padded or cut to.
 */
export function tokens(text, request) {
  if (text.key === "max_sequence_length") return request.sampling.maxSequenceLength;
  return request.transformerConfig[text.key] ?? text.length;
}

/**
 * @param {Text} text
 * @param {any} modelIndex
 * @returns {string} what is put before prompts.
 */
export function before({ instruction }, modelIndex) {
  return instruction ? (modelIndex[instruction] ?? "") : "";
}

/** @type {Record<string, (settings: any, wanted: Wanted) => Value | Promise<Value>>} */
export const SOURCES = {
  async States({ parts }, wanted) {
    const found = [];
    for (const part of parts) found.push(await statesOf(part, wanted));
    const width = Math.max(...found.map(({ dims }) => dims[2]));
    return joined(found.map((value) => padded(value, width)), 1);
  },

  async Mask({ text }, wanted) {
    return (await wanted.encoded(text)).mask;
  },

  async Pooled({ texts }, wanted) {
    const found = [];
    for (const text of texts) {
      const { pooled } = await wanted.encoded(text);
      if (pooled === undefined) {
        throw new Error(
          `${text.encoder} gives no vector for a whole text: expected one; export the bundle again`,
        );
      }
      found.push(pooled);
    }
    return joined(found, 1);
  },

  Numbers({ values }, { request, inOrder, dims, dtype }) {
    const { height, width, guidance } = request.sampling;
    /** @type {Record<string, number>} */
    const known = { height, width, aspect_ratio: height / width, guidance };
    const row = values.map((/** @type {string | number} */ value) => known[value] ?? value);
    const rows = inOrder(row, row);
    return filled(dtype, rows.flat(), dims.length > 1 ? [rows.length, row.length] : [rows.length]);
  },

  Grid({ pixels }, { request, dims, dtype }) {
    const [rows, columns] = [request.sampling.height / pixels, request.sampling.width / pixels];
    const rest = new Array(Number(dims[1]) - 3).fill(0);
    const places = Array.from({ length: rows * columns }, (_, i) => [
      0,
      Math.floor(i / columns),
      i % columns,
      ...rest,
    ]);
    return filled(dtype, places.flat(), [places.length, Number(dims[1])]);
  },

  Order({ text }, { request, dims, dtype }) {
    const zeros = new Array(Number(dims[1]) - 1).fill(0);
    const places = Array.from({ length: tokens(text, request) }, (_, i) => [...zeros, i]);
    return filled(dtype, places.flat(), [places.length, Number(dims[1])]);
  },

  Zeros({ text }, { request, dims, dtype }) {
    const shape = [tokens(text, request), Number(dims[1])];
    return filled(dtype, new Array(shape[0] * shape[1]).fill(0), shape);
  },

  ClassLabels({ key, classes }, { request, inOrder, dtype }) {
    const count = request.transformerConfig[key] || classes;
    const labels = inOrder(classOf(request, count), count);
    return filled(dtype, labels, [labels.length]);
  },
};

/**
 * @param {Text[]} part encoders whose vectors of each token are joined.
 * @param {Wanted} wanted
 * @returns {Promise<Value>} zeros for an encoder that the pipeline does without.
 */
async function statesOf(part, { request, inOrder, encoded, dims }) {
  const [first] = part;
  if (first.optional && !hasComponent(request.modelIndex, first.encoder)) {
    const width = request.transformerConfig[dims[dims.length - 1]];
    const shape = [inOrder(0, 0).length, tokens(first, request), width];
    return { type: "float32", data: new Float32Array(shape.reduce((a, b) => a * b)), dims: shape };
  }
  const found = [];
  for (const text of part) found.push(ofText(text, await encoded(text)));
  return joined(found, 2);
}

/**
 * @param {Text} text
 * @param {Encoded} encoded
 * @returns {Value} its states; of padding zeros, where the family asks for that.
 */
function ofText({ blank }, { states, mask }) {
  if (!blank) return states;
  const width = states.dims[2];
  const data = states.data.map((/** @type {any} */ x, i) => x * Number(mask.data[Math.floor(i / width)]));
  return { ...states, data };
}

/**
 * @param {any} modelIndex
 * @param {string} name
 * @returns {boolean} whether model_index.json says more than null of a component.
 */
export function hasComponent(modelIndex, name) {
  const found = modelIndex[name];
  return Array.isArray(found) ? found.some((one) => one !== null) : found != null;
}

/**
 * @param {Request} request
 * @param {number} classes
 * @returns {number} the class that the prompt names or numbers.
 */
function classOf(request, classes) {
  const name = request.prompt.trim();
  for (const [number, names] of Object.entries(request.modelIndex.id2label ?? {})) {
    const named = names.split(",").some((/** @type {string} */ one) => one.trim() === name);
    if (named && Number(number) < classes) return Number(number);
  }
  if (/^[0-9]+$/.test(name) && Number(name) < classes) return Number(name);
  throw new Error(
    `No class "${request.prompt}": expected a number from 0 to ${classes - 1} or a name of ` +
      "id2label in model_index.json.",
  );
}

/**
 * @param {"float32" | "int64"} type
 * @param {number[]} numbers
 * @param {number[]} dims
 * @returns {Value}
 */
function filled(type, numbers, dims) {
  const data =
    type === "int64" ? BigInt64Array.from(numbers, BigInt) : Float32Array.from(numbers);
  return { type, data, dims };
}

/**
 * @param {Value[]} values of one type, of the same sizes but along `axis`.
 * @param {number} axis
 * @returns {Value} one after the other along that axis.
 */
export function joined(values, axis) {
  const dims = [...values[0].dims];
  dims[axis] = values.reduce((sum, value) => sum + value.dims[axis], 0);
  const { type } = values[0];
  const size = dims.reduce((a, b) => a * b);
  /** @type {any} */
  const data = type === "int64" ? new BigInt64Array(size) : new Float32Array(size);
  const outer = dims.slice(0, axis).reduce((a, b) => a * b, 1);
  let place = 0;
  for (let i = 0; i < outer; i++) {
    for (const value of values) {
      const size = value.data.length / outer;
      data.set(value.data.subarray(i * size, (i + 1) * size), place);
      place += size;
    }
  }
  return { type, data, dims };
}

/**
 * @param {Value} value [rows, L, D].
 * @param {number} width
 * @returns {Value} with zeros at the end of each vector, [rows, L, width].
 */
function padded(value, width) {
  const [rows, length, own] = value.dims;
  if (own === width) return value;
  const dims = [rows, length, width - own];
  const zeros = new Float32Array(dims.reduce((a, b) => a * b));
  return joined([value, { type: "float32", data: zeros, dims }], 2);
}

/**
 * @param {Value} value [rows, L, ...].
 * @param {number} length
 * @returns {Value} the first of each row and its last ones, `length` in all.
 */
export function ends({ type, data, dims: [rows, all, ...rest] }, length) {
  const width = rest.reduce((a, b) => a * b, 1);
  /** @type {any} */
  const kept = data.slice(0, rows * length * width);
  for (let row = 0; row < rows; row++) {
    const [from, to] = [row * all * width, row * length * width];
    kept.set(data.subarray(from, from + width), to);
    kept.set(data.subarray(from + (all - length + 1) * width, from + all * width), to + width);
  }
  return { type, data: kept, dims: [rows, length, ...rest] };
}
