// Generates an image with a bundle under onnxruntime-node; USAGE has the command line.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";
import { PNG } from "pngjs";

import { Pipeline } from "../../fp4dit_onnx/web/js/pipeline.js";

const USAGE =
  "usage: node generate.mjs BUNDLE PROMPT PICTURE.png [SEED] " +
  "[--image IMAGE.png [--strength SHARE] [--mask MASK.png]]";
const OPTIONS = {
  image: { type: "string" },
  strength: { type: "string" },
  mask: { type: "string" },
};

/** A bundle in a folder, as Pipeline reads it. */
class Folder {
  constructor(root) {
    this.root = root;
  }

  has(name) {
    return existsSync(join(this.root, name));
  }

  async json(name) {
    if (!this.has(name)) throw new Error(`${join(this.root, name)} not found: expected a bundle`);
    return JSON.parse(readFileSync(join(this.root, name), "utf8").replace(/^\uFEFF/, ""));
  }

  async steps(count) {
    const table = await this.json("scheduler/steps.json");
    if (table.steps !== count) {
      throw new Error(`scheduler/steps.json has ${table.steps} steps: expected ${count}`);
    }
    return table;
  }

  async model(folder) {
    return { model: join(this.root, folder, "model.onnx") }; // finds model.onnx.data beside it
  }
}

/** The arguments of the command line; Pipeline checks what they mean. */
function parsed(words) {
  try {
    const { values, positionals } = parseArgs({
      args: words,
      options: OPTIONS,
      allowPositionals: true,
    });
    const [bundle, prompt, picture, seed = "0", ...more] = positionals;
    if (picture !== undefined && more.length === 0 && /^[0-9]+$/.test(seed)) {
      return { bundle, prompt, picture, seed, ...values };
    }
  } catch {
    // an option that is unknown, or that lacks its value
  }
  throw new Error(USAGE);
}

/** The image in a PNG file. */
function decoded(path, what) {
  if (path === undefined) return null;
  try {
    const { width, height, data } = PNG.sync.read(readFileSync(path));
    return { width, height, rgba: data };
  } catch {
    throw new Error(`${path} is no PNG file: expected ${what}`);
  }
}

async function main(words) {
  const { bundle, prompt, picture, seed, image, mask, strength } = parsed(words);
  if (image === undefined && strength !== undefined) {
    throw new Error("--strength without an image: expected --image IMAGE.png with it");
  }
  const options = {
    seed: BigInt(seed),
    image: decoded(image, "an image to begin with"),
    mask: decoded(mask, "a mask"),
    strength: strength === undefined ? undefined : Number(strength),
  };
  const pipeline = await Pipeline.open({ ort, Tokenizer, files: new Folder(bundle) });
  const start = performance.now();
  const { width, height, rgba } = await pipeline.draw(prompt, options);
  const seconds = (performance.now() - start) / 1000;
  const png = new PNG({ width, height });
  png.data = Buffer.from(rgba.buffer);
  writeFileSync(picture, PNG.sync.write(png));
  console.log(`${picture}: ${prompt}, generated in ${seconds.toFixed(1)} s`);
  await pipeline.close();
}

main(process.argv.slice(2)).catch((error) => {
  const line = error.message.split("\n")[0];
  // A terminal would obey the control characters of a name from the bundle.
  console.error(`error: ${line.replace(/\p{Cc}/gu, "?")}`);
  process.exitCode = 1;
});
