/** Runs the pipeline beside the page, so that the page stays responsive while an image is generated. */

import { Tokenizer } from "../vendor/tokenizers.min.mjs";
import { RemoteFiles } from "./download.js";
import { Cancelled, Pipeline } from "./pipeline.js";

/**
 * Where models can run: files of ONNX Runtime in ../vendor/, and what a session is told.
 *
 * On WebAssembly nodes run one after the other in either mode. The parallel one plans no reuse of
 * buffers, which for the thousands of nodes of function bodies takes most of the time of loading.
 */
const DEVICES = {
  wasm: {
    module: "ort.wasm.min.mjs",
    binary: "ort-wasm-simd-threaded",
    options: { executionProviders: ["wasm"], executionMode: "parallel" },
  },
  webgpu: {
    module: "ort.jspi.min.mjs",
    binary: "ort-wasm-simd-threaded.jspi",
    options: { executionProviders: ["webgpu"] },
  },
};

/** Targets whose linears are an operator that ONNX Runtime has for WebGPU. */
const FOR_WEBGPU = ["nbits", "nbits-half"];

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
 * @param {string} target of the bundle.
 * @param {string | null} wanted "wasm" for WebAssembly in any case.
 * @returns {Promise<{device: "wasm" | "webgpu", why: string}>} where to run it; for the page, the
 *   adapter or why there is none.
 */
async function chosenDevice(target, wanted) {
  if (wanted === "wasm") return { device: "wasm", why: "" };
  if (!FOR_WEBGPU.includes(target)) {
    return { device: "wasm", why: "For WebGPU convert the bundle with --target nbits." };
  }
  if (!("Suspending" in WebAssembly)) {
    return { device: "wasm", why: "This browser's WebAssembly cannot wait for WebGPU (JSPI)." };
  }
  const { gpu } = /** @type {any} */ (navigator);
  const adapter = await gpu?.requestAdapter();
  if (!adapter) return { device: "wasm", why: "This browser gives the page no WebGPU adapter." };
  if (target === "nbits-half" && !adapter.features.has("shader-f16")) {
    return { device: "wasm", why: "This WebGPU adapter has no float16: use --target nbits." };
  }
  const { vendor, architecture, description } = adapter.info;
  return { device: "webgpu", why: [vendor, architecture, description].filter(Boolean).join(" ") };
}

/**
 * @param {RemoteFiles} files
 * @param {"wasm" | "webgpu"} device
 * @param {number | null} threads
 * @returns {Promise<any>} ONNX Runtime's environment; `pipeline` is open.
 */
async function open(files, device, threads) {
  const { module, binary, options } = DEVICES[device];
  const vendor = new URL("../vendor/", import.meta.url);
  const ort = await import(new URL(module, vendor).href);
  ort.env.wasm.wasmPaths = {
    mjs: new URL(`${binary}.mjs`, vendor).href,
    wasm: new URL(`${binary}.wasm`, vendor).href,
  };
  ort.env.wasm.numThreads = threadCount(threads);
  files.done = 0;
  pipeline = await Pipeline.open({
    ort,
    Tokenizer,
    files,
    sessionOptions: options,
    onLoad: (part) => postMessage({ type: "loading", part }),
  });
  return ort.env;
}

/**
 * @param {{root: string, threads: number | null, device: string | null}} request
 * @returns {Promise<object>} what the page shows.
 */
async function load({ root, threads, device: wanted }) {
  const files = await RemoteFiles.open(root, (done, of) =>
    postMessage({ type: "download", done, of }),
  );
  let { device, why } = await chosenDevice(files.manifest.target, wanted);
  let env;
  try {
    env = await open(files, device, threads);
  } catch (error) {
    if (device === "wasm") throw error;
    why = `WebGPU cannot run this bundle: ${String(error).split("\n")[0]}`;
    device = "wasm";
    env = await open(files, device, threads);
  }
  return {
    type: "ready",
    defaults: pipeline.defaults,
    multiple: pipeline.sizeMultiple,
    largest: pipeline.largestSize,
    encoders: pipeline.encoders,
    begins: pipeline.begins,
    source: files.manifest.source,
    bits: files.manifest.recipe.bits,
    bytes: files.total,
    bodies: !FOR_WEBGPU.includes(files.manifest.target),
    device,
    why,
    threads: env.wasm.numThreads,
    runtime: env.versions.web,
  };
}

/**
 * @param {File | null} file
 * @param {string} what its role, for messages.
 * @returns {Promise<import("./beginning.js").Pixels | null>}
 */
async function decoded(file, what) {
  if (file === null) return null;
  try {
    const bitmap = await createImageBitmap(file, {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
    const { width, height } = bitmap;
    const context = new OffscreenCanvas(width, height).getContext("2d", {
      willReadFrequently: true,
    });
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    return { width, height, rgba: context.getImageData(0, 0, width, height).data };
  } catch {
    throw new Error(
      `${file.name} is no image that this browser reads: expected ${what}, such as a PNG file.`,
    );
  }
}

/**
 * @param {any} request prompt, negativePrompt, seed, sampling, strength, and the files image and mask.
 * @returns {Promise<object>}
 */
async function draw({ prompt, image, mask, ...options }) {
  cancelled = false;
  const start = performance.now();
  const picture = await pipeline.draw(prompt, {
    ...options,
    image: await decoded(image, "an image to begin with"),
    mask: await decoded(mask, "a mask"),
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
