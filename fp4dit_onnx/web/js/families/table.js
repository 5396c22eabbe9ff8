/** The table of families that are drawn with JavaScript. */

import { DIT } from "./dit.js";
import { HUNYUAN_DIT } from "./hunyuan.js";
import { PIXART } from "./pixart.js";

/** @type {import("./family.js").Family[]} */
export const FAMILIES = [PIXART, HUNYUAN_DIT, DIT];

/**
 * @param {string} pipelineClass diffusers' class.
 * @returns {import("./family.js").Family}
 */
export function familyOfPipeline(pipelineClass) {
  const found = FAMILIES.find((family) => family.pipelines.includes(pipelineClass));
  if (found !== undefined) return found;
  const known = FAMILIES.flatMap((family) => family.pipelines).join(", ");
  throw new Error(
    `model_index.json names the pipeline ${pipelineClass}: expected one of ${known}; draw with ` +
      "fp4dit-onnx generate.",
  );
}
