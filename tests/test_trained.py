"""The trained pipelines of tests/pipelines: small, bell-shaped, and using what their families have.

`tools/train_demo.py` made them; docs/quality_dit.md and its like measure calibration on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import numpy as np
import torch

from fp4dit_onnx.calibration.run import calibrate
from fp4dit_onnx.calibration.sampling import load_pipeline, pipeline_sampler, sample_latents
from fp4dit_onnx.calibration.simulate import simulated
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.checkpoint.tensor_reading import read_float32
from fp4dit_onnx.exporting.plan import Plan, plan
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.prompts import demo_prompts
from fp4dit_onnx.spec.state import QuantizedState
from fp4dit_onnx.system.progress import SilentReporter

PIPELINES = Path(__file__).resolve().parent / "pipelines"
USED = {
    "dit": "*.class_embedder.embedding_table",
    "hunyuan": "*.skip_linear",
    "sd3": "*.attn.add_v_proj",
}
"""Modules without whose weights the images are others."""
PROMPTS = 4
SEEDS = range(40, 40 + PROMPTS)


def planned(name: str, method: str = "fp-rtn") -> Plan:
    request = ExportRequest(
        model=PIPELINES / name,
        output=Path("none"),
        method=method,
        steps=4,
        calibration_prompts=PROMPTS,
    )
    return plan(request)


@cache
def pipeline(name: str) -> Any:
    return load_pipeline(planned(name).checkpoint)


def prompts(name: str) -> Sequence[str]:
    return (
        [*pipeline(name).labels][1:9:2] if name == "dit" else demo_prompts("evaluation")[:PROMPTS]
    )


def latents(name: str, state: QuantizedState | None = None) -> Any:
    """Of the float model, or of a quantized one."""
    made, network = planned(name), pipeline(name).transformer
    with nullcontext() if state is None else simulated(network, state):
        drawn = sample_latents(pipeline(name), made.family, prompts(name), SEEDS, made.sampling)
    return drawn.numpy()


@cache
def floats(name: str) -> Any:
    return latents(name)


def test_a_pipeline_says_how_it_is_sampled() -> None:
    made = plan(ExportRequest(model=PIPELINES / "sd3", output=Path("none"), method="fp-rtn"))
    sampling = made.sampling
    assert (sampling.steps, sampling.guidance, sampling.max_sequence_length) == (12, 3.0, 16)


@pytest.mark.parametrize("name", USED)
def test_transformers_are_small_and_bell_shaped(name: str) -> None:
    made = planned(name)
    stored = made.checkpoint.tensors
    assert 1e6 <= sum(int(np.prod(info.shape)) for info in stored.values()) <= 3e6
    assert sum(info.nbytes for info in stored.values()) <= 6e6
    for layer in made.specs:
        weight = read_float32(stored[f"{layer}.weight"]).astype(np.float64)
        kurtosis = ((weight - weight.mean()) ** 4).mean() / weight.var() ** 2
        assert 2.2 < kurtosis < 6, layer  # uniform ones have 1.8


@pytest.mark.parametrize("name", USED)
def test_what_a_family_has_decides_its_images(name: str) -> None:
    network = pipeline(name).transformer
    modules = [m for n, m in network.named_modules() if Path(n).match(USED[name])]
    kept = [module.weight.detach().clone() for module in modules]
    try:
        with torch.no_grad():
            for module in modules:  # of long skips the half that an earlier block made
                module.weight[..., -network.config.attention_head_dim * 4 :] = 0
        cut = latents(name)
    finally:
        with torch.no_grad():
            for module, weight in zip(modules, kept, strict=True):
                module.weight.copy_(weight)
    assert modules
    assert sqnr_db(floats(name), cut) < 15


@pytest.mark.parametrize("name", ["dit", "hunyuan"])
def test_tuned_is_better_than_nearest_rounding(name: str, tmp_path: Path) -> None:
    found = {
        method: sqnr_db(floats(name), latents(name, state))
        for method, state in calibrated(name, tmp_path)
    }
    assert found["tuned"] > found["fp-rtn"] + 3, found


def calibrated(name: str, folder: Path) -> Iterator[tuple[str, QuantizedState]]:
    """Rounded to nearest, and tuned on other images."""
    for method in ("fp-rtn", "tuned"):
        made = planned(name, method)
        sampler = pipeline_sampler(
            pipeline(name), made.family, made.prompts, range(PROMPTS), made.sampling
        )
        found = calibrate(
            whole(pipeline(name).transformer),
            made.specs,
            made.method,
            replace(sampler, prepare=lambda: None, close=lambda: None),
            seed=0,
            provenance={},
            reporter=SilentReporter(),
            attention=made.attention,
            candidates=made.recipe.candidates(tuple(made.specs)),
            precisions=made.precisions,
            work=Work(folder / method, {"method": method}),
        )
        yield method, found.state
