/** Runs the pipeline beside the page, so that the page stays responsive while an image is generated. */

import * as ort from "../vendor/ort.wasm.min.mjs";
import { Tokenizer } from "../vendor/tokenizers.min.mjs";
import { RemoteFiles } from "./download.js";
import { Cancelled, Pipeline } from "./pipeline.js";

/** More threads gain nothing in models of this size. */
const MOST_THREADS = 8;

/** @type {Pipeline} */
let pipeline;
let cancelled = false;

/** @returns {Promise<void>} after the messages that wait, such as one to cancel, were handled. */
function handleMessages() {
  return new Promise((resolve) => setTimeout(resolve));
}

/**
 * @param {number | null} wanted threads, or null for as many as there are cores.
 * @returns {number} 1 where the browser lends no memory that threads share.
 */
function threadCount(wanted) {
  if (!globalThis.crossOriginIsolated || typeof SharedArrayBuffer === "undefined") return 1;
  return wanted ?? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS);
}

/**
 * @param {{root: string, threads: number | null}} request
 * @returns {Promise<object>} what the page shows.
 */
async function load({ root, threads }) {
  const vendor = new URL("../vendor/", import.meta.url);
  ort.env.wasm.wasmPaths = {
    mjs: new URL("ort-wasm-simd-threaded.mjs", vendor).href,
    wasm: new URL("ort-wasm-simd-threaded.wasm", vendor).href,
  };
  ort.env.wasm.numThreads = threadCount(threads);
  const files = await RemoteFiles.open(root, (done, of) =>
    postMessage({ type: "download", done, of }),
  );
  pipeline = await Pipeline.open({
    ort,
    Tokenizer,
    files,
    sessionOptions: { executionProviders: ["wasm"] },
    onLoad: (part) => postMessage({ type: "loading", part }),
  });
  return {
    type: "ready",
    defaults: pipeline.defaults,
    multiple: pipeline.sizeMultiple,
    largest: pipeline.largestSize,
    encoders: pipeline.encoders,
    source: files.manifest.source,
    bits: files.manifest.recipe.bits,
    bytes: files.total,
    threads: ort.env.wasm.numThreads,
    runtime: ort.env.versions.web,
  };
}

/**
 * @param {any} request prompt, negativePrompt, seed, sampling.
 * @returns {Promise<object>}
 */
async function draw({ prompt, ...options }) {
  cancelled = false;
  const start = performance.now();
  const picture = await pipeline.draw(prompt, {
    ...options,
    cancelled: () => cancelled,
    onStep: async (done, of) => {
      postMessage({ type: "step", done, of });
      await handleMessages();
    },
  });
  return { type: "picture", ...picture, seconds: (performance.now() - start) / 1000 };
}

/**
 * @param {unknown} error
 * @returns {object} what the page shows of it: one sentence.
 */
function failure(error) {
  if (error instanceof Cancelled) return { type: "cancelled" };
  const text = String(error instanceof Error ? error.message : error);
  const memory = /memory|bad_alloc|allocat/i.test(text);
  const cure = " The models need more memory than a page has: use fp4dit-onnx generate.";
  return { type: "error", message: text.split("\n")[0] + (memory ? cure : "") };
}

const TASKS = { load, draw };

self.onmessage = async ({ data }) => {
  if (data.type === "cancel") {
    cancelled = true;
    return;
  }
  try {
    postMessage(await TASKS[/** @type {"load" | "draw"} */ (data.type)](data));
  } catch (error) {
    postMessage(failure(error));
  }
};
