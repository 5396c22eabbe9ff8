/**
 * The noise of a seed: numpy's `Generator(PCG64(seed)).standard_normal(shape, float32)`.
 *
 * Written after the published algorithms: O'Neill's PCG XSL-RR 128/64 and seed sequence, and
 * Marsaglia and Tsang's ziggurat with 256 layers, whose tables are computed below. The bits are
 * numpy's, but for the tail of the normal distribution (1 value in 4000): it takes a logarithm,
 * and the C library that numpy was linked with may round it another way in the last place.
 */

const MASK_32 = 0xffffffffn;
const MASK_64 = (1n << 64n) - 1n;
const MASK_128 = (1n << 128n) - 1n;

/** Multiplier of the 128-bit linear congruential generator. */
const PCG_MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

/** Words that a seed sequence mixes its entropy into. */
const POOL_SIZE = 4;

/**
 * A chain of hashes whose constant changes with each.
 * @param {number} constant the first one.
 * @param {number} multiplier what takes it to the next.
 * @returns {(word: number) => number} hashes one 32-bit word.
 */
function hashChain(constant, multiplier) {
  return (word) => {
    let value = word ^ constant;
    constant = Math.imul(constant, multiplier);
    value = Math.imul(value, constant);
    return (value ^ (value >>> 16)) >>> 0;
  };
}

/**
 * @param {number} x 32-bit word.
 * @param {number} y 32-bit word.
 * @returns {number} both in one.
 */
function mixed(x, y) {
  const value = Math.imul(x, 0xca01f9dd) - Math.imul(y, 0x4973f715);
  return (value ^ (value >>> 16)) >>> 0;
}

/**
 * @param {bigint} value not negative.
 * @returns {number[]} its 32-bit words, the lowest first; one at least.
 */
function words(value) {
  const found = [];
  do {
    found.push(Number(value & MASK_32));
    value >>= 32n;
  } while (value > 0n);
  return found;
}

/**
 * The first words of numpy's `SeedSequence(entropy).generate_state(count, uint64)`.
 * @param {bigint[]} entropy not negative.
 * @param {number} count of words.
 * @returns {bigint[]} 64 bits each.
 */
export function seedSequence(entropy, count) {
  const given = entropy.flatMap(words);
  const hash = hashChain(0x43b0d7e5, 0x931e8875);
  const pool = Array.from({ length: POOL_SIZE }, (_, i) => hash(given[i] ?? 0));
  for (let from = 0; from < POOL_SIZE; from++) {
    for (let to = 0; to < POOL_SIZE; to++) {
      if (from !== to) pool[to] = mixed(pool[to], hash(pool[from]));
    }
  }
  for (const word of given.slice(POOL_SIZE)) {
    for (let to = 0; to < POOL_SIZE; to++) pool[to] = mixed(pool[to], hash(word));
  }
  const spread = hashChain(0x8b51f9dd, 0x58f38ded);
  const halves = Array.from({ length: 2 * count }, (_, i) => BigInt(spread(pool[i % POOL_SIZE])));
  return Array.from({ length: count }, (_, i) => halves[2 * i] | (halves[2 * i + 1] << 32n));
}

/** numpy's PCG64, which hands out a 64-bit word as its low half, then its high half. */
class Pcg64 {
  /** @param {bigint[]} entropy of the seed sequence. */
  constructor(entropy) {
    const [stateHigh, stateLow, streamHigh, streamLow] = seedSequence(entropy, 4);
    this.increment = ((((streamHigh << 64n) | streamLow) << 1n) | 1n) & MASK_128;
    this.state = (this.increment + ((stateHigh << 64n) | stateLow)) & MASK_128;
    this.advance();
    /** @type {number | undefined} */
    this.kept = undefined;
  }

  advance() {
    this.state = (this.state * PCG_MULTIPLIER + this.increment) & MASK_128;
  }

  /** @returns {number} 32 random bits. */
  next32() {
    if (this.kept !== undefined) {
      const high = this.kept;
      this.kept = undefined;
      return high;
    }
    this.advance();
    const folded = (this.state >> 64n) ^ (this.state & MASK_64);
    const turn = this.state >> 122n;
    const word = ((folded >> turn) | (folded << (64n - turn))) & MASK_64;
    this.kept = Number(word >> 32n);
    return Number(word & MASK_32);
  }

  /** @returns {number} uniform in [0, 1), a multiple of 2^-24. */
  nextFloat() {
    return (this.next32() >>> 8) / 2 ** 24;
  }
}

const LAYERS = 256;

/** Where the ziggurat's lowest layer ends and the tail begins, for 256 layers of equal area. */
const TAIL = 3.6541528853610088;

/** Random bits that choose a place in a layer. */
const PLACES = 2 ** 23;

/**
 * The ziggurat under exp(-x^2 / 2): layer i reaches to `edge[i]`, its height is `density[i]`.
 * @returns {{width: Float32Array, inside: Uint32Array, density: Float32Array}} by layer: size of a
 *   place, the first place not surely under the curve, and the curve at the layer's edge.
 */
function ziggurat() {
  const curve = (/** @type {number} */ x) => Math.exp((-x * x) / 2);
  let mills = TAIL; // of the tail, as a continued fraction: area beyond TAIL = curve(TAIL) / mills
  for (let k = 200; k > 0; k--) mills = TAIL + k / (k === 200 ? TAIL : mills);
  const area = TAIL * curve(TAIL) + curve(TAIL) / mills;
  const edge = new Float64Array(LAYERS);
  edge[LAYERS - 1] = TAIL;
  for (let i = LAYERS - 2; i > 0; i--) {
    edge[i] = Math.sqrt(-2 * Math.log(area / edge[i + 1] + curve(edge[i + 1])));
  }
  const base = area / curve(TAIL); // as wide as a rectangle of the lowest layer's area would be
  const width = Float32Array.from(edge, (x, i) => (i === 0 ? base : x) / PLACES);
  const inside = Uint32Array.from(edge, (x, i) =>
    Math.round((i === 0 ? TAIL / base : edge[i - 1] / x) * PLACES),
  );
  return { width, inside, density: Float32Array.from(edge, curve) };
}

const { width: WIDTH, inside: INSIDE, density: DENSITY } = ziggurat();

const TAIL_F32 = Math.fround(TAIL);
const INVERSE_TAIL_F32 = Math.fround(1 / TAIL);

/**
 * @param {Pcg64} random
 * @returns {number} -log of a uniform number, float32.
 */
function exponential(random) {
  return -Math.fround(Math.log1p(-random.nextFloat()));
}

/**
 * @param {Pcg64} random
 * @returns {number} a normal number beyond the lowest layer, float32, not negative.
 */
function tail(random) {
  for (;;) {
    const x = Math.fround(INVERSE_TAIL_F32 * exponential(random));
    const y = exponential(random);
    if (Math.fround(y + y) > Math.fround(x * x)) return Math.fround(TAIL_F32 + x);
  }
}

/**
 * @param {Pcg64} random
 * @returns {number} standard normal, float32.
 */
function standardNormal(random) {
  for (;;) {
    const bits = random.next32();
    const layer = bits & 0xff;
    const place = bits >>> 9;
    const x = Math.fround(place * WIDTH[layer]) * (bits & 0x100 ? -1 : 1);
    if (place < INSIDE[layer]) return x;
    if (layer === 0) return tail(random) * ((place >>> 8) & 1 ? -1 : 1);
    const span = Math.fround(DENSITY[layer - 1] - DENSITY[layer]);
    const height = Math.fround(Math.fround(span * random.nextFloat()) + DENSITY[layer]);
    if (height < Math.exp(-0.5 * x * x)) return x;
  }
}

/**
 * @param {bigint[]} entropy of the seed sequence.
 * @param {number} count of numbers.
 * @returns {Float32Array} standard normal.
 */
function normals(entropy, count) {
  const random = new Pcg64(entropy);
  return Float32Array.from({ length: count }, () => standardNormal(random));
}

/**
 * The noise that an image begins with.
 * @param {bigint} seed not negative.
 * @param {number} count of latents.
 * @returns {Float32Array} standard normal.
 */
export function initialLatents(seed, count) {
  return normals([seed], count);
}

/**
 * The noise of one step, for stochastic schedulers.
 * @param {bigint} seed not negative.
 * @param {number} index of the step, from 0.
 * @param {number} count of latents.
 * @returns {Float32Array} standard normal.
 */
export function stepNoise(seed, index, count) {
  return normals([seed, BigInt(index + 1)], count);
}

/**
 * The noise on what a VAE's encoder gives: of numpy's `SeedSequence(seed, spawn_key=(0,))`.
 * @param {bigint} seed 0 to 2^64 - 1.
 * @param {number} count of latents.
 * @returns {Float32Array} standard normal.
 */
export function encoderNoise(seed, count) {
  return normals([seed & MASK_32, seed >> 32n, 0n, 0n, 0n], count); // the pool's words, then the key
}
