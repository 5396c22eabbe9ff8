"""JavaScript's half of the pipeline under Node: noise, tokens, and examples/node."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_tokenizers
from needs import absent
from nodejs import JS, node, program, script
from PIL import Image

from fp4dit_onnx.families.latents import Latents
from fp4dit_onnx.runtime.beginning import STRENGTH, drawn, mask_of, pixels_of, steps_taken
from fp4dit_onnx.runtime.pipeline import Pipeline
from fp4dit_onnx.runtime.sampling import Sampling, initial_latents, step_noise
from fp4dit_onnx.runtime.tokenizer import Tokenizer
from fp4dit_onnx.tokenizer_files import copy_tokenizer

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

EXAMPLE = Path(__file__).parents[1] / "examples" / "node"
PROMPT = "tiger face"
INSTALL_SECONDS = 300


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/node with its packages, beside a copy of the modules that it imports."""
    root = tmp_path_factory.mktemp("node")
    shutil.copytree(
        JS.parent, root / "fp4dit_onnx" / "web", ignore=shutil.ignore_patterns("vendor")
    )
    folder = shutil.copytree(
        EXAMPLE, root / "examples" / "node", ignore=shutil.ignore_patterns("node_modules")
    )
    command = [program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
    )
    if done.returncode:
        absent(f"needs an npm registry within reach: {done.stderr[-200:]}")
    return Path(folder)


NOISE = """
const { encoderNoise, initialLatents, stepNoise } = await import(process.argv[1]);
const draws = [
  ...JSON.parse(process.argv[2]).map(([seed, count]) => initialLatents(BigInt(seed), count)),
  ...JSON.parse(process.argv[3]).map(([seed, i, count]) => stepNoise(BigInt(seed), i, count)),
  ...JSON.parse(process.argv[4]).map(([seed, count]) => encoderNoise(BigInt(seed), count)),
];
for (const draw of draws) process.stdout.write(Buffer.from(draw.buffer).toString("base64") + "\\n");
"""


def test_noise_is_numpys_bit_for_bit() -> None:
    """All but the tail, where the C library's logarithm may round the other way."""
    initial = [(0, 2_000_000), (7, 999), (2**32 + 5, 999), (2**64 - 1, 999)]
    steps = [(0, 0, 999), (12, 19, 999), (2**64 - 1, 3, 999)]
    text = script(
        NOISE,
        JS / "noise.js",
        *(
            json.dumps([[str(s), *rest] for s, *rest in rows])
            for rows in (initial, steps, initial)
        ),
    )
    found = [np.frombuffer(base64.b64decode(line), np.float32) for line in text.split()]
    expected = [initial_latents(seed, (count,)) for seed, count in initial]
    expected += [step_noise([seed], index, (count,))[0] for seed, index, count in steps]
    expected += [
        drawn(np.zeros((1, 2, count), np.float32), [seed], 1)[0, 0] for seed, count in initial
    ]
    assert len(found) == len(expected)
    for ours, numpys in zip(found, expected, strict=True):
        body = np.abs(numpys) < 3.654  # where the ziggurat's tail begins
        assert np.array_equal(ours[body], numpys[body])
        np.testing.assert_allclose(ours[~body], numpys[~body], rtol=3e-7)
    assert (np.abs(expected[0]) >= 3.6542).sum() > 100  # the tail occurred


TOKENS = """
import { Tokenizer } from "@huggingface/tokenizers";
import { readFileSync } from "node:fs";
const { Tokens } = await import(process.argv[1]);
const read = (name) => JSON.parse(readFileSync(`${process.argv[2]}/${name}`, "utf8"));
const settings = { ...read("tokenizer_config.json"), ...JSON.parse(process.argv[4]) };
const tokens = new Tokens(Tokenizer, read("tokenizer.json"), settings);
const { ids, mask } = tokens.encode(JSON.parse(process.argv[3]), 16);
console.log(JSON.stringify({ ids: Array.from(ids, Number), mask: Array.from(mask, Number) }));
"""
TEXTS = [
    "",
    "tiger face",
    "  Tabs\tand\n lines\u3000",
    "na\u00efve caf\u00e9, CR\u00c8ME br\u00fbl\u00e9e!",
    "\u8001\u864e face \U0001f42f",
    "a long prompt of many more words than sixteen tokens hold, and so it is cut at the end again",
    "semi-colons; (brackets) [and] 3.14 $% <pad> </s>",
    "\u0130stanbul \u03a3\u0391\u03a3 \u00df\u200b\u00ad\ufeff",
]


@pytest.mark.parametrize("changes", [{}, {"padding_side": "left", "truncation_side": "left"}])
def test_tokens_are_pythons(
    demo_folder: Path, example: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    folder = shutil.copytree(demo_folder / "tokenizer", tmp_path / "tokenizer")
    arguments = (JS / "tokens.js", folder, json.dumps(TEXTS), json.dumps(changes))
    found = json.loads(script(TOKENS, *arguments, cwd=example))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | changes))
    ids, mask = Tokenizer(folder)(TEXTS, 16)
    assert found == {"ids": ids.ravel().tolist(), "mask": mask.ravel().tolist()}


@pytest.mark.parametrize(
    ("class_name", "kind"),
    [("T5Tokenizer", "t5"), ("CLIPTokenizer", "clip"), ("BertTokenizer", "bert")],
)
def test_tokens_of_converted_tokenizers(
    example: Path, tmp_path: Path, class_name: str, kind: str
) -> None:
    config = {"kind": kind, "model_max_length": 77, "whole": False}
    pad = {"t5": "<pad>", "clip": "!", "bert": "[PAD]"}[kind]
    small_tokenizers.write(tmp_path / "source", class_name, {**config, "pad_token": pad})
    copy_tokenizer(tmp_path / "source", class_name, tmp_path / "bundle")
    texts = TEXTS[:-1]  # JavaScript has a final sigma, and U+FEFF is white space in it
    arguments = (JS / "tokens.js", tmp_path / "bundle", json.dumps(texts), "{}")
    found = json.loads(script(TOKENS, *arguments, cwd=example))
    ids, mask = Tokenizer(tmp_path / "bundle")(texts, 16)
    assert found == {"ids": ids.ravel().tolist(), "mask": mask.ravel().tolist()}


SETTINGS = """
const { Pipeline } = await import(process.argv[1]);
const pipeline = new Pipeline(null, null);
pipeline.family = { latents: { packing: 1 } };
pipeline.defaults = { steps: 4, guidance: 4.5, height: 64, width: 64, maxSequenceLength: 16 };
pipeline.vaeConfig = { block_out_channels: [1, 1, 1, 1] };
pipeline.transformerConfig = { patch_size: 2 };
pipeline.largestSize = 96;
const refusal = async (changes, seed) => {
  try {
    pipeline.settings(changes);
    await pipeline.draw("a", { sampling: changes, seed });
  } catch (error) {
    return error.message;
  }
};
const found = [];
for (const [changes, seed] of JSON.parse(process.argv[2])) {
  found.push(await refusal({ ...changes, guidance: Number(changes.guidance ?? 3) }, BigInt(seed)));
}
console.log(JSON.stringify(found));
"""


@pytest.mark.parametrize(
    ("changes", "seed", "words"),
    [
        ({"height": 112}, 0, "height is 112: expected at most 96"),
        ({"width": 72}, 0, "width is 72: expected a positive multiple of 16"),
        ({"width": 0}, 0, "width is 0"),
        ({"height": 48.5}, 0, "height is 48.5"),
        ({"steps": -1}, 0, "Steps are -1"),
        ({"steps": 1.5}, 0, "Steps are 1.5"),
        ({"guidance": "NaN"}, 0, "Guidance is NaN: expected a number from 0 to 1000"),
        ({"guidance": "Infinity"}, 0, "Guidance is Infinity"),
        ({"guidance": -1}, 0, "Guidance is -1"),
        ({}, -1, "seed is -1: expected a whole number from 0 to 18446744073709551615"),
        ({}, 2**64, "seed is 18446744073709551616"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], seed: int, words: str) -> None:
    content = json.dumps([[changes, str(seed)]])
    (message,) = json.loads(script(SETTINGS, JS / "pipeline.js", content))
    assert words in message


def test_example_draws_what_python_draws(
    drawable: Callable[[str], Path], example: Path, tmp_path: Path
) -> None:
    """With activations in float, up to the rounding of single values: see test_serve."""
    folder, picture = drawable("w4a16"), tmp_path / "tiger.png"
    done = node(example / "generate.mjs", folder, PROMPT, picture, 3)
    assert done.returncode == 0, done.stderr
    assert str(picture) in done.stdout
    pipeline = Pipeline(folder, library=False)
    expected, other = map(np.asarray, pipeline.generate([PROMPT] * 2, seeds=[3, 4]))
    found = np.asarray(Image.open(picture).convert("RGB"))
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != expected).mean() <= 0.01
    assert (found != other).mean() > 0.1


BEGIN = """
const { startOf, stepsTaken } = await import(process.argv[1]);
const { parameters, originals, strengths } = JSON.parse(process.argv[2]);
const told = [];
const pipeline = {
  begins: true,
  sessions: { vae_encoder: null },
  scaling: { scaling: 0.5, shift: Math.fround(0.1) },
  latentDims: () => [1, 2, 3, 5],
  run: async (part, { image }) => {
    told.push(Array.from(image.data));
    return { parameters: { data: Float32Array.from(parameters) } };
  },
};
const found = [];
for (const { begins = true, ...original } of originals) {
  try {
    const sampling = { steps: 20, height: 6, width: 8 };
    const start = await startOf({ ...pipeline, begins }, original, sampling, 7n);
    found.push({ ...start, latents: Array.from(start.latents) });
  } catch (error) {
    found.push(error.message);
  }
}
const taken = strengths.map((strength) => stepsTaken(20, strength));
console.log(JSON.stringify({ told, found, taken }));
"""


def pixels(image: Image.Image) -> dict[str, Any]:
    rgba = np.asarray(image.convert("RGBA")).ravel().tolist()
    return {"width": image.width, "height": image.height, "rgba": rgba}


def test_images_begin_as_in_python() -> None:
    """Pixels, latents, masks and steps bit for bit; and what is refused."""
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    mask = Image.fromarray(random.integers(0, 256, (6, 8), np.uint8))
    parameters = random.standard_normal((1, 4, 3, 5)).astype(np.float32) * 9
    whole, shade = pixels(image), pixels(mask)
    clear = pixels(Image.new("RGBA", (8, 6)))
    originals: list[tuple[dict[str, Any], str]] = [
        ({"mask": shade}, "a mask and no image"),
        (
            {"image": {**whole, "width": 6, "height": 8}},
            "The image has 6 x 8 pixels: expected 8 x 6",
        ),
        ({"image": clear}, "transparent"),
        ({"image": whole, "mask": {**shade, "width": 1}}, "The mask has 1 x 6 pixels"),
        ({"image": whole, "mask": whole}, "mask has colours"),
        ({"image": whole, "mask": clear}, "is transparent"),
        ({"image": whole, "strength": 0}, "strength is 0: expected more than 0"),
        ({"image": whole, "strength": 1.5}, "strength is 1.5"),
        ({"image": whole, "strength": "x"}, "strength is x"),
        ({"image": whole, "begins": False}, "no vae_encoder"),
    ]
    strengths = [0.6, 0.3, 1, 1e-9, 0.95, 0.05]
    content = {
        "parameters": parameters.ravel().tolist(),
        "originals": [{"image": whole, "mask": shade}, *[given for given, _ in originals]],
        "strengths": strengths,
    }
    found = json.loads(script(BEGIN, JS / "beginning.js", json.dumps(content)))
    sampling = Sampling(steps=20, guidance=3.0, height=6, width=8, max_sequence_length=16)
    assert found["told"] == [pixels_of(image, sampling).ravel().tolist()]
    start, *refused = found["found"]
    layout = Latents(scaling=0.5, shift=0.1)
    expected = layout.from_encoder(drawn(parameters, [7], 2), {})
    assert start["latents"] == expected.ravel().tolist()
    assert start["mask"] == (mask_of(mask, sampling, (3, 5)).ravel() == 1).tolist()
    assert start["strength"] == STRENGTH
    for message, (_, words) in zip(refused, originals, strict=True):
        assert words in message
    assert found["taken"] == [steps_taken(20, strength) for strength in strengths]


def test_example_begins_with_an_image(
    drawable: Callable[[str], Path], example: Path, tmp_path: Path
) -> None:
    """The picture of another seed, made anew in half of it."""
    folder, out = drawable("w4a16"), tmp_path / "out.png"
    pipeline = Pipeline(folder, library=False)
    (image,) = pipeline.generate([PROMPT], seeds=9, steps=4)
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 0, 64, 32))
    image.save(tmp_path / "image.png")
    mask.save(tmp_path / "mask.png")
    more = ["--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png"]
    done = node(example / "generate.mjs", folder, PROMPT, out, 3, *more, "--strength", 0.3)
    assert done.returncode == 0, done.stderr
    options: Any = {"seeds": 3, "strength": 0.3, "image": image}
    (expected,) = pipeline.generate([PROMPT], mask=mask, **options)
    (other,) = pipeline.generate([PROMPT], **options)
    found = np.asarray(Image.open(out).convert("RGB"))
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 1
    assert (found != np.asarray(expected)).mean() <= 0.01
    assert (found != np.asarray(other)).mean() > 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["usage", "BUNDLE"]),
        (["bundle", PROMPT, "x.png", "--size", "9"], ["usage", "--image"]),
        (["bundle", PROMPT, "x.png", "--strength", "0.5"], ["--strength without an image"]),
        (["bundle", PROMPT, "x.png", "--image", "package.json"], ["package.json is no PNG file"]),
        (["no-such-folder", PROMPT, "x.png"], ["quantization.json", "not found", "bundle"]),
        (["no-such-folder", PROMPT, "x.png", "-3"], ["usage", "SEED"]),
    ],
)
def test_example_refuses(example: Path, arguments: list[str], words: list[str]) -> None:
    done = node("generate.mjs", *arguments, cwd=example)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("path", sorted(JS.rglob("*.js")), ids=lambda p: p.name)
def test_modules_parse(path: Path) -> None:
    assert node("--check", path).returncode == 0
