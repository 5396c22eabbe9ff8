// Generates an image with a bundle under onnxruntime-node:  node generate.mjs BUNDLE PROMPT PICTURE.png [SEED]

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";
import { PNG } from "pngjs";

import { Pipeline } from "../../fp4dit_onnx/web/js/pipeline.js";

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

async function main([bundle, prompt, picture, seed = "0"]) {
  if (picture === undefined || !/^[0-9]+$/.test(seed)) {
    throw new Error("usage: node generate.mjs BUNDLE PROMPT PICTURE.png [SEED]");
  }
  const pipeline = await Pipeline.open({ ort, Tokenizer, files: new Folder(bundle) });
  const start = performance.now();
  const { width, height, rgba } = await pipeline.draw(prompt, { seed: BigInt(seed) });
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
