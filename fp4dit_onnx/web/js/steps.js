/**
 * Steps of a sampler, by the table that `fp4dit_onnx/runtime/step_table.py` makes of a run.
 *
 * @typedef {object} Weights of the newest sample or output and of those before, for each step.
 * @property {number[][]} sample
 * @property {number[][]} output
 *
 * @typedef {object} Table
 * @property {number} steps
 * @property {number[]} timesteps
 * @property {number[]} noise
 * @property {number} [initial] tables of the first version have neither: 1.
 * @property {number[]} [input]
 * @property {number[][]} [levels] weights of an image's latents and of noise in a step's sample; older
 *   tables have none.
 * @property {Weights[]} [begun] in place of `sample` and `output`, by how many steps were taken before.
 *
 * @typedef {Weights & Table} StepTable
 */

/**
 * @param {Float32Array} values
 * @param {number} factor
 * @returns {Float32Array}
 */
export function scaled(values, factor) {
  return factor === 1 ? values : values.map((value) => value * factor);
}

/**
 * @param {StepTable} table
 * @param {Weights} weights the table's own or of its `begun`.
 * @param {number} i the step.
 * @param {Float32Array[]} samples x[i], x[i-1], ...
 * @param {Float32Array[]} outputs o[i], o[i-1], ...
 * @param {Float32Array | null} noise z[i].
 * @returns {Float32Array} x[i+1].
 */
export function nextSample(table, weights, i, samples, outputs, noise) {
  return samples[0].map((_, k) => {
    let sum = noise === null ? 0 : table.noise[i] * noise[k];
    samples.forEach((sample, j) => (sum += weights.sample[i][j] * sample[k]));
    outputs.forEach((output, j) => (sum += weights.output[i][j] * output[k]));
    return sum;
  });
}

/**
 * @param {StepTable} table
 * @param {number} i the step.
 * @param {Float32Array} latents of an image.
 * @param {Float32Array} noise
 * @returns {Float32Array} x[i] of the image.
 */
export function noised({ levels }, i, latents, noise) {
  if (levels === undefined) {
    throw new Error(
      "scheduler/steps.json has no levels, which images to begin with need: export the bundle again.",
    );
  }
  const [kept, added] = levels[i];
  return latents.map((value, k) => Math.fround(kept * value) + Math.fround(added * noise[k]));
}
