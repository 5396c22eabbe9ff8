/** Prompts to token ids, as the Python runtime's `Tokenizer` does it. */

const USUAL_PADDING = ["<pad>", "[PAD]"];

/** The tokenizer of a bundle: special tokens stay when a text is cut; a short one is padded. */
export class Tokens {
  /**
   * @param {any} Tokenizer class of the package @huggingface/tokenizers.
   * @param {any} description the content of tokenizer.json.
   * @param {any} settings the content of tokenizer_config.json, or {}.
   */
  constructor(Tokenizer, description, settings) {
    this.tokenizer = new Tokenizer(description, settings);
    this.padsLeft = settings.padding_side === "left";
    this.cutsLeft = settings.truncation_side === "left";
    const named = settings.pad_token?.content ?? settings.pad_token;
    const candidates = [named, description.padding?.pad_token, ...USUAL_PADDING];
    const ids = candidates.filter((token) => token != null).map((t) => this.idOf(t));
    this.padding = ids.find((id) => id !== undefined);
    if (this.padding === undefined) {
      throw new Error(
        "tokenizer.json defines no padding token: expected pad_token in tokenizer_config.json, " +
          "or <pad> or [PAD] in the vocabulary; export the bundle again",
      );
    }
  }

  /**
   * @param {string} token
   * @returns {number | undefined} its id, if the vocabulary has it.
   */
  idOf(token) {
    return this.tokenizer.token_to_id(token);
  }

  /**
   * @param {string[]} texts
   * @param {number} length tokens that every text is padded or cut to.
   * @returns {{ids: BigInt64Array, mask: BigInt64Array}} [texts, length] each.
   */
  encode(texts, length) {
    const ids = new BigInt64Array(texts.length * length).fill(BigInt(this.padding));
    const mask = new BigInt64Array(texts.length * length);
    texts.forEach((text, row) => {
      const tokens = this.cut(text, length);
      const start = row * length + (this.padsLeft ? length - tokens.length : 0);
      ids.set(tokens.map(BigInt), start);
      mask.fill(1n, start, start + tokens.length);
    });
    return { ids, mask };
  }

  /**
   * @param {string} text
   * @returns {number} its tokens, special ones included.
   */
  length(text) {
    return this.tokenizer.encode(text).ids.length;
  }

  /**
   * @param {string} text
   * @param {number} length the most tokens.
   * @returns {number[]} token ids.
   */
  cut(text, length) {
    const whole = this.tokenizer.encode(text).ids;
    if (whole.length <= length) return whole;
    const bare = this.tokenizer.encode(text, { add_special_tokens: false }).ids;
    const special = whole.length - bare.length;
    const kept = length - special;
    const before = prefixLength(whole, bare);
    return [
      ...whole.slice(0, before),
      ...(this.cutsLeft ? bare.slice(bare.length - kept) : bare.slice(0, kept)),
      ...whole.slice(before + bare.length),
    ];
  }
}

/**
 * @param {number[]} whole
 * @param {number[]} part
 * @returns {number} where `part` begins in `whole`.
 */
function prefixLength(whole, part) {
  for (let start = 0; start <= whole.length - part.length; start++) {
    if (part.every((id, i) => whole[start + i] === id)) return start;
  }
  throw new Error("the tokenizer's special tokens do not enclose the text: expected them to");
}
