"""Families in JavaScript under Node: their inputs and predictions are those of Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nodejs import JS, node, script

from fp4dit_onnx.families import FAMILIES, family_of_pipeline
from fp4dit_onnx.families.request import Encoded, Request, Text
from fp4dit_onnx.runtime.denoising import Denoising
from fp4dit_onnx.runtime.sampling import Sampling
from fp4dit_onnx.runtime.schedulers import Run

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")


FEED = """
const { encodersOf, familyOfPipeline, feedOf } = await import(process.argv[1]);
const { pipeline, request } = JSON.parse(process.argv[2]);
const asked = [];
const values = (count, first) => Float32Array.from({ length: count }, (_, i) => first + i);
const encode = async ({ encoder, masked, output, instruction }, length, texts) => {
  asked.push([encoder, length, masked, output, instruction, texts]);
  const width = encoder === "text_encoder" ? 2 : 3;
  const dims = [texts.length, length, width];
  const states = { type: "float32", data: values(texts.length * length * width, length), dims };
  const real = BigInt64Array.from({ length: texts.length * length }, (_, i) => BigInt(i % 3));
  const mask = { type: "int64", data: real, dims: [texts.length, length] };
  const data = values(texts.length * width, width);
  return { states, mask, pooled: { type: "float32", data, dims: [texts.length, width] } };
};
const family = familyOfPipeline(pipeline);
const feed = await feedOf(family, request, encode);
const shown = ({ type, data, dims }) => [type, Array.from(data, Number), dims];
const inputs = Object.entries(feed).map(([name, value]) => [name, shown(value)]);
const encoders = encodersOf(family, request.modelIndex);
console.log(JSON.stringify({ asked, inputs: Object.fromEntries(inputs), encoders }));
"""
GENERATING = [family.pipelines[0] for family in FAMILIES if family.generates]


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("name", GENERATING)
def test_feeds_are_pythons(name: str, guidance: float) -> None:
    """The inputs that no step changes, given an encoder that gives numbers; SD3 has no T5 here."""
    family = family_of_pipeline(name, Path("test"))
    prompt = "goose" if name == "DiTPipeline" else "\x85 A Red\u3000\ufeff"
    negative = "" if family.guidance.refusal else " Blurred "
    sampling = Sampling(steps=4, guidance=guidance, height=96, width=64, max_sequence_length=16)
    config = {"text_len": 9, "num_embeds_ada_norm": 100, "joint_attention_dim": 7}
    index = {"id2label": {"99": "goose, Anser"}, "text_encoder_3": [None, None]}
    asked: list[list[Any]] = []

    def encode(text: Text, length: int, texts: Sequence[str]) -> Encoded:
        told = (text.masked, text.output, text.instruction)
        asked.append([text.encoder, length, *told, list(texts)])
        width, count = 2 if text.encoder == "text_encoder" else 3, len(texts)
        states = np.arange(count * length * width, dtype=np.float32).reshape(count, length, width)
        pooled = np.arange(count * width, dtype=np.float32).reshape(count, width)
        mask = np.arange(count * length).reshape(count, length) % 3
        return Encoded(states + length, mask, pooled + width)

    request = Request([prompt], negative, sampling, family.guidance, config, index)
    feed = family.feed(request, encode)
    plain = {
        "prompt": prompt,
        "negativePrompt": negative,
        "sampling": {**asdict(sampling), "maxSequenceLength": 16},
        "guided": request.guided,
        "transformerConfig": config,
        "modelIndex": index,
    }
    content = json.dumps({"pipeline": name, "request": plain})
    found = json.loads(script(FEED, JS / "families.js", content))
    assert found["asked"] == asked
    assert found["encoders"] == list(family.encoders_of(index))
    assert list(found["inputs"]) == list(feed)
    for key, (kind, data, dims) in found["inputs"].items():
        value = feed[key]
        assert kind == value.dtype.name
        assert data == value.ravel().tolist()
        assert dims == list(value.shape)


@pytest.mark.parametrize(
    ("number", "found"), [("99", '[["99"],[1]]'), ("100", 'No class "goose"')]
)
def test_names_of_classes_that_the_transformer_has_not(number: str, found: str) -> None:
    text = """
    const { SOURCES } = await import(process.argv[1]);
    const request = JSON.parse(process.argv[2]);
    const wanted = { request, inOrder: (given) => [given], dtype: "int64" };
    const { data, dims } = SOURCES.ClassLabels({ key: "n", classes: 1000 }, wanted);
    console.log(JSON.stringify([Array.from(data, String), dims]));
    """
    index = {"id2label": {number: "goose"}}
    request = {"prompt": "goose", "transformerConfig": {"n": 100}, "modelIndex": index}
    done = node("--input-type=module", "--eval", text, JS / "sources.js", json.dumps(request))
    assert found in done.stdout + done.stderr


PREDICT = """
const { doubles, familyOfPipeline } = await import(process.argv[1]);
const { Pipeline } = await import(process.argv[2]);
const { name, dims, guidance, timestep } = JSON.parse(process.argv[3]);
const pipeline = new Pipeline(null, null);
pipeline.family = familyOfPipeline(name);
const told = {};
pipeline.run = async (part, { hidden_states: x, timestep: t }) => {
  Object.assign(told, { dims: x.dims, time: Array.from(t.data, Number), type: t.type });
  return { sample: { data: x.data.map((value, i) => value * (1 + i)), dims: x.dims } };
};
const latents = Float32Array.from({ length: dims.reduce((a, b) => a * b) }, (_, i) => i / 8);
const request = { guided: doubles(pipeline.family, guidance), sampling: { guidance } };
const output = await pipeline.predict(latents, dims, timestep, {}, request);
console.log(JSON.stringify({ ...told, output: Array.from(output) }));
"""


@pytest.mark.parametrize("name", GENERATING)
def test_predictions_are_pythons(name: str) -> None:
    """Packed or not, guided or not: what the transformer is told, and what becomes of its output."""
    family, dims = family_of_pipeline(name, Path("test")), [1, 2, 4, 6]
    told: dict[str, Any] = {}

    def run(_: None, feed: dict[str, Any]) -> list[Any]:
        x, t = feed["hidden_states"], feed["timestep"]
        told.update(dims=list(x.shape), time=t.tolist(), type=t.dtype.name)
        return [(x.ravel() * (1 + np.arange(x.size, dtype=np.float32))).reshape(x.shape)]

    inputs = [SimpleNamespace(name=one) for one in ("hidden_states", "timestep")]
    transformer: Any = SimpleNamespace(get_inputs=lambda: inputs, run=run)
    solver: Any = SimpleNamespace(index=0, step=lambda output, sample, noise: sample)
    once = Run(np.array([625.0], np.float32), solver, (np.ones(1, np.float32),) * 2)
    sampling = Sampling(steps=4, guidance=3.0, height=96, width=64, max_sequence_length=16)
    request = Request(["a"], "", sampling, family.guidance, {}, {})
    latents = (np.arange(48, dtype=np.float32) / 8).reshape(dims)
    denoising = Denoising(transformer, family, request, {}, lambda: once, None)
    here: Any = SimpleNamespace(memory=None)
    expected = next(denoising.steps(latents, here)).output()
    content = json.dumps({"name": name, "dims": dims, "guidance": 3.0, "timestep": 625})
    found = json.loads(script(PREDICT, JS / "families.js", JS / "pipeline.js", content))
    assert found.pop("output") == expected.ravel().tolist()
    assert found == told
