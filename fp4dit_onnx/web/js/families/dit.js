/** DiT: pictures of a class, which the prompt names or numbers. */

/** Where the transformer's config does not say; the class after the last one is none at all. */
const CLASSES = 1000;

/**
 * @param {import("./family.js").Request} request
 * @returns {number} the class that the prompt names or numbers.
 */
function classOf(request) {
  const name = request.prompt.trim();
  for (const [number, names] of Object.entries(request.modelIndex.id2label ?? {})) {
    if (names.split(",").some((/** @type {string} */ one) => one.trim() === name)) {
      return Number(number);
    }
  }
  const classes = request.transformerConfig.num_embeds_ada_norm || CLASSES;
  if (/^[0-9]+$/.test(name) && Number(name) < classes) return Number(name);
  throw new Error(
    `No class "${request.prompt}": expected a number from 0 to ${classes - 1} or a name of ` +
      "id2label in model_index.json.",
  );
}

/** @type {import("./family.js").Family} */
export const DIT = {
  pipelines: ["DiTPipeline"],
  encoders: [],
  negativeFirst: false,
  timestep: "int64",
  async conditions(request) {
    if (request.negativePrompt) {
      throw new Error("This model draws classes and leads away from none: leave it out.");
    }
    const labels = [BigInt(classOf(request))];
    if (request.guided) {
      labels.push(BigInt(request.transformerConfig.num_embeds_ada_norm || CLASSES));
    }
    const data = BigInt64Array.from(labels);
    return { class_labels: { type: "int64", data, dims: [labels.length] } };
  },
};
