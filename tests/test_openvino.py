"""A converted bundle under OpenVINO, which knows neither our operators nor local functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
pytest.importorskip("diffusers")

import onnx
import openvino
from onnx.reference import ReferenceEvaluator

from fp4dit_onnx.evaluation.metrics import psnr
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.runtime import Pipeline
from fp4dit_onnx.targets import convert, target_by_name
from fp4dit_onnx.targets.standard import standard
from fp4dit_onnx.targets.tiny_model import tiny_linear

APART_DB = 25.0
"""Images of two evaluators are 31 to 37 dB apart here, of two seeds less than 20."""


class Compiled:
    """OpenVINO in place of a session of ONNX Runtime; see `runtime.session.Session`."""

    def __init__(self, path: Path) -> None:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        graph = onnx.load(path, load_external_data=False).graph
        self._names = [SimpleNamespace(name=value.name) for value in graph.output]
        self._model = openvino.Core().compile_model(str(path), "CPU", settings)

    def get_inputs(self) -> Sequence[Any]:
        """Names; no shape is fixed."""
        return [SimpleNamespace(name=port.any_name, shape=()) for port in self._model.inputs]

    def get_outputs(self) -> Sequence[Any]:
        """Names of the ONNX file, which has them in the same order."""
        return self._names

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """Every output."""
        found = self._model(dict(feed))
        return [found[port] for port in self._model.outputs]


def test_the_whole_pipeline_draws_the_same_picture(demo_bundle: Path, tmp_path: Path) -> None:
    prompt = ["tiger face"]
    pipeline = Pipeline(demo_bundle, library=False)
    expected, other = pipeline.generate(prompt * 2, seeds=[0, 1])
    folder = convert(demo_bundle, tmp_path / "inline", target_by_name("inline")).bundle
    for part in ("text_encoder", "transformer", "vae_decoder"):
        setattr(pipeline, part, Compiled(folder / part / "model.onnx"))
    found = pipeline.generate(prompt, seeds=0)[0]
    pixels = [np.asarray(picture) for picture in (found, expected, other)]
    assert psnr(pixels[0], pixels[1]) > APART_DB
    assert psnr(pixels[0], pixels[2]) < APART_DB


def test_scales_of_two_levels_are_exact(tmp_path: Path) -> None:
    """The rows of the identity give the weights: NVFP4's values, bit for bit."""
    model = standard(tiny_linear(16), {})
    onnx.save_model(model, tmp_path / "model.onnx")
    feed = {"x": np.eye(32, dtype=np.float32)}
    found = Compiled(tmp_path / "model.onnx").run(None, feed)[0]
    assert np.array_equal(found, ReferenceEvaluator(model).run(None, feed)[0])
    assert len(np.unique(found)) > 8


def test_the_standard_transformer_is_that_of_the_reference(
    demo_bundle: Path, tmp_path: Path
) -> None:
    """FLOAT4E2M1 and FLOAT8E4M3FN in OpenVINO: at most e4m3 decisions fall otherwise."""
    folder = convert(demo_bundle, tmp_path / "standard", target_by_name("standard")).bundle
    model = onnx.load(folder / "transformer" / "model.onnx")
    rng = np.random.default_rng(0)
    feed = {
        "hidden_states": rng.standard_normal((2, 4, 8, 8)).astype(np.float32),
        "encoder_hidden_states": rng.standard_normal((2, 16, 128)).astype(np.float32),
        "timestep": np.full(2, 500, np.float32),
        "encoder_attention_mask": np.ones((2, 16), np.int64),
    }
    expected = ReferenceEvaluator(model).run(None, dict(feed))[0]
    found = Compiled(folder / "transformer" / "model.onnx").run(None, feed)[0]
    assert sqnr_db(expected, found) > 30
