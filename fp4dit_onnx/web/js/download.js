/** A bundle behind a URL, as Pipeline reads it: every file is checked against the manifest. */

const MANIFEST = "quantization.json";
const CURE = "export the bundle again, or copy it whole, and start fp4dit-onnx serve anew";

/** Bytes up to which a file's sha256 is computed, not its size alone. */
const HASHED_UP_TO = 2 ** 28;

/**
 * @param {string} url
 * @returns {Promise<Response>}
 */
async function request(url) {
  let answer;
  try {
    answer = await fetch(url);
  } catch {
    throw new Error(`Cannot reach ${url}: start fp4dit-onnx serve again and reload the page.`);
  }
  if (!answer.ok) {
    const text = (await answer.text()).trim().split("\n")[0];
    throw new Error(`Cannot load ${url} (${answer.status}): ${text || CURE}`);
  }
  return answer;
}

/**
 * @param {Uint8Array} bytes
 * @returns {Promise<string>} sha256 in hexadecimal.
 */
async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Files of a bundle; see `Files` in pipeline.js. */
export class RemoteFiles {
  /**
   * @param {string} root URL of the bundle's folder, ending in a slash.
   * @param {(done: number, of: number) => void} onProgress bytes of the models.
   * @returns {Promise<RemoteFiles>}
   */
  static async open(root, onProgress) {
    const files = new RemoteFiles(root, onProgress);
    files.manifest = await (await request(root + MANIFEST)).json();
    files.total = Object.entries(files.manifest.files)
      .filter(([name]) => /\.onnx(\.data)?$/.test(name))
      .reduce((sum, [, entry]) => sum + entry.bytes, 0);
    return files;
  }

  /**
   * @param {string} root
   * @param {(done: number, of: number) => void} onProgress
   * @private use `open`.
   */
  constructor(root, onProgress) {
    this.root = root;
    this.onProgress = onProgress;
    this.done = 0;
    this.total = 0;
    /** @type {any} */
    this.manifest = {};
  }

  /** @param {string} name */
  has(name) {
    return name in this.manifest.files;
  }

  /** @param {string} name */
  async json(name) {
    if (name === MANIFEST) return this.manifest;
    return JSON.parse(new TextDecoder().decode(await this.bytes(name, () => {})));
  }

  /** @param {number} count */
  async steps(count) {
    const table = await (await request(`${this.root}scheduler/steps.json?steps=${count}`)).json();
    if (table.steps === count) return table;
    throw new Error(
      `This copy of the bundle knows runs of ${table.steps} steps: expected ${count}; choose ` +
        `${table.steps}, or run fp4dit-onnx serve, which computes others.`,
    );
  }

  /** @param {string} folder */
  async model(folder) {
    const count = (/** @type {number} */ bytes) => {
      this.done += bytes;
      this.onProgress(this.done, this.total);
    };
    const model = await this.bytes(`${folder}/model.onnx`, count);
    const path = "model.onnx.data";
    if (!this.has(`${folder}/${path}`)) return { model };
    return { model, externalData: [{ path, data: await this.bytes(`${folder}/${path}`, count) }] };
  }

  /**
   * @param {string} name
   * @param {(bytes: number) => void} count called with the bytes of every piece that arrives.
   * @returns {Promise<Uint8Array>} the file, which has the size and the hash of the manifest.
   */
  async bytes(name, count) {
    const entry = this.manifest.files[name];
    if (entry === undefined) throw new Error(`${MANIFEST} lists no ${name}: ${CURE}.`);
    const answer = await request(this.root + name);
    const bytes = new Uint8Array(entry.bytes);
    let size = 0;
    const reader = /** @type {ReadableStream<Uint8Array>} */ (answer.body).getReader();
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      if (size + piece.value.length <= bytes.length) bytes.set(piece.value, size);
      size += piece.value.length;
      count(piece.value.length);
    }
    if (size !== bytes.length) {
      throw new Error(`${name} has ${size} bytes, ${MANIFEST} says ${bytes.length}: ${CURE}.`);
    }
    if (size <= HASHED_UP_TO && globalThis.crypto?.subtle !== undefined) {
      const found = await sha256(bytes);
      if (found !== entry.sha256) {
        throw new Error(
          `${name} has sha256 ${found.slice(0, 12)}..., ${MANIFEST} says ` +
            `${entry.sha256.slice(0, 12)}...: ${CURE}.`,
        );
      }
    }
    return bytes;
  }
}
