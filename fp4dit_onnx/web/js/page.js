/** The page: a form, a worker that generates images, and their display. */

const NAMES = {
  text_encoder: "the text encoder",
  text_encoder_2: "the second text encoder",
  transformer: "the transformer",
  vae_decoder: "the decoder",
  vae_encoder: "the encoder",
};

/**
 * @param {string} id
 * @returns {any} the element.
 */
function element(id) {
  return document.getElementById(id);
}

const form = element("form");
const status = element("status");
const progress = element("progress");
const canvas = element("picture");
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });

/** @type {any} */
let asked = {};
let started = 0;
let loading = "";

/**
 * @param {number} bytes
 * @returns {string}
 */
function mebibytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

/** @param {boolean} drawing */
function setDrawing(drawing) {
  element("draw").disabled = drawing;
  element("cancel").disabled = !drawing;
  progress.hidden = !drawing;
}

/** @param {string} message one sentence: what is wrong, and what to do. */
function showError(message) {
  element("error").textContent = message;
  element("error").hidden = false;
  status.textContent = "";
  progress.hidden = true;
}

/** @param {any} facts what the worker says when it is ready. */
function showReady(facts) {
  const { defaults, multiple, largest } = facts;
  for (const name of ["steps", "guidance", "width", "height"]) {
    element(name).value = defaults[name];
  }
  for (const side of ["width", "height"]) {
    element(side).min = multiple;
    element(side).step = multiple;
    element(side).max = Math.min(largest, element(side).max);
  }
  if (facts.encoders.length === 0) {
    element("prompt-label").textContent = "Class, by name or number";
    element("negative-field").hidden = true;
  }
  for (const field of document.querySelectorAll(".begins")) {
    /** @type {HTMLElement} */ (field).hidden = !facts.begins;
  }
  element("bundle").textContent =
    `${facts.source?.name ?? ""} (${facts.source?.pipeline ?? "pipeline"}), ` +
    `${facts.bits ?? "?"}, models of ${mebibytes(facts.bytes)}`;
  const one = facts.threads === 1;
  const why = globalThis.crossOriginIsolated
    ? ""
    : " This browser or address gives the page no SharedArrayBuffer, so it uses one thread, " +
      "more slowly: use https or localhost.";
  const threads = `WebAssembly, ${facts.threads} ${one ? "thread" : "threads"}.${why} ${facts.why}`;
  const where = facts.device === "webgpu" ? `WebGPU, adapter ${facts.why}.` : threads.trim();
  element("threads").textContent = `ONNX Runtime ${facts.runtime}, ${where}`;
  element("bodies").hidden = !facts.bodies;
  setDrawing(false);
  status.textContent = "Ready.";
}

/** @param {{done: number, of: number}} step */
function showStep({ done, of }) {
  const left = ((performance.now() - started) / done / 1000) * (of - done);
  progress.max = of;
  progress.value = done;
  status.textContent = `Step ${done} of ${of}, about ${Math.ceil(left)} s left.`;
}

/** @param {{width: number, height: number, rgba: Uint8ClampedArray, seconds: number}} picture */
function showPicture({ width, height, rgba, seconds }) {
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
  canvas.setAttribute("aria-label", `Image of: ${asked.prompt}; seed ${asked.seed}`);
  element("caption").textContent =
    `${asked.prompt}; seed ${asked.seed}, ${asked.sampling.steps} steps, ${width} x ${height}`;
  canvas.toBlob((/** @type {Blob} */ blob) => {
    const link = element("download");
    URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(blob);
    const name = asked.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
    link.download = `${name}-${asked.seed}.png`;
  });
  element("result").hidden = false;
  setDrawing(false);
  status.textContent = `Generated in ${seconds.toFixed(1)} s.`;
  showMemory();
}

/** Say how much memory the page takes, where the browser tells; it may take its time. */
async function showMemory() {
  if (!crossOriginIsolated || !("measureUserAgentSpecificMemory" in performance)) return;
  try {
    const { bytes } = await /** @type {any} */ (performance).measureUserAgentSpecificMemory();
    element("memory").textContent = `This page takes ${mebibytes(bytes)} of memory.`;
  } catch {
    element("memory").textContent = "";
  }
}

/** What the page does with each kind of message from the worker. */
const SHOWN = {
  /** @param {any} message */
  loading: ({ part }) => {
    loading = NAMES[/** @type {keyof typeof NAMES} */ (part)] ?? part;
    status.textContent = `Loading ${loading}.`;
  },
  /** @param {any} message */
  download: ({ done, of }) => {
    progress.hidden = false;
    progress.max = of;
    progress.value = done;
    status.textContent = `Loading ${loading}: ${mebibytes(done)} of ${mebibytes(of)}.`;
  },
  ready: showReady,
  step: showStep,
  picture: showPicture,
  cancelled: () => {
    setDrawing(false);
    status.textContent = "Cancelled.";
  },
  /** @param {any} message */
  error: ({ message }) => {
    if (started > 0) setDrawing(false);
    showError(message);
  },
};

worker.onmessage = ({ data }) => SHOWN[/** @type {keyof typeof SHOWN} */ (data.type)](data);
worker.onerror = (event) =>
  showError(
    `The page cannot start (${event.message ?? "a file did not load"}): use a browser with ` +
      "WebAssembly SIMD and module workers, and load the page again.",
  );

form.addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  if (element("draw").disabled) return;
  const number = (/** @type {string} */ id) => Number(element(id).value);
  const file = (/** @type {string} */ id) => element(id).files[0] ?? null;
  asked = {
    type: "draw",
    prompt: element("prompt").value,
    negativePrompt: element("negative").value,
    seed: BigInt(element("seed").value),
    image: file("image"),
    strength: number("strength"),
    mask: file("mask"),
    sampling: {
      steps: number("steps"),
      guidance: number("guidance"),
      width: number("width"),
      height: number("height"),
    },
  };
  element("error").hidden = true;
  started = performance.now();
  progress.removeAttribute("value");
  setDrawing(true);
  status.textContent = "Reading the prompt.";
  worker.postMessage(asked);
});

element("cancel").addEventListener("click", () => {
  status.textContent = "Cancelling after this step.";
  worker.postMessage({ type: "cancel" });
});

const asks = new URLSearchParams(location.search);
const threads = asks.get("threads");
worker.postMessage({
  type: "load",
  root: new URL("bundle/", location.href).href,
  device: asks.get("device"),
  threads: threads === null ? null : Math.max(1, Number(threads) || 1),
});
