"""Activations under one constant scale: how it is found, and that it is kept to the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from toy_network import LAYERS, PICTURES, sampler_of, toy_network

from fp4dit_onnx.calibration.constant_scale import best_largest, quantiles
from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.grid import quantize_static
from fp4dit_onnx.calibration.layer_inputs import LayerInputs, Second
from fp4dit_onnx.calibration.methods import Method, read_method
from fp4dit_onnx.calibration.moments import HalfWeights, Rows
from fp4dit_onnx.calibration.run import Calibration, calibrate
from fp4dit_onnx.calibration.stages import STAGES, Evidence
from fp4dit_onnx.calibration.work import Work, model_digest
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import same_bits
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import load_state, save_state
from fp4dit_onnx.system.progress import SilentReporter

METHOD = """
summary = "one scale"
grid = "fp"
data = { prompts = 12, samples = 32 }
[[stage]]
use = "static"
[[stage]]
use = "absmax"
[[stage]]
use = "%s"
"""


def calibrated(folder: Path, rounding: str, **settings: Any) -> Calibration:
    """The toy network under one scale per layer, the head's activations in float."""
    path = folder / "mine.toml"
    path.write_text(METHOD % rounding)
    method: Method = read_method(path, samples=32, prompts=PICTURES, **settings)
    network, specs = toy_network(), dict.fromkeys(LAYERS, LayerSpec.of("e2m1", "int8", 8))
    specs["head"] = LayerSpec.of("e2m1", None, 8)
    work = Work(folder / "w", {"model": model_digest(whole(network))})
    return calibrate(
        whole(network),
        specs,
        method,
        sampler_of(network),
        seed=0,
        provenance={},
        reporter=SilentReporter(),
        work=work,
    )


@pytest.mark.parametrize(
    ("rounding", "settings"), [("nearest", {}), ("adaround", {"iterations": 2})]
)
def test_every_layer_keeps_its_scale(
    tmp_path: Path, rounding: str, settings: dict[str, Any]
) -> None:
    found = calibrated(tmp_path, rounding, **settings)
    largest = {name: layer.spec.largest for name, layer in found.state.layers.items()}
    assert largest.pop("head") is None
    assert None not in largest.values()
    assert len(set(largest.values())) > 3, "layers of one input alone have one in common"
    assert largest["blocks.0.mix"] != largest["blocks.1.mix"]
    assert found.model_sqnr_db > 15
    assert all(error.output > 10 for error in found.errors.values())
    save_state(found.state, tmp_path / "state")
    read = load_state(tmp_path / "state")
    assert {n: layer.spec for n, layer in read.layers.items()} == {
        n: layer.spec for n, layer in found.state.layers.items()
    }


@pytest.mark.parametrize("name", list(FORMATS))
def test_torch_has_the_bits_of_numpy(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((40, 33)).astype(np.float32)
    x[0], x[1, 2], x[2, 3], x[3, 4], x[4] = 0, np.nan, np.inf, 3e38, 1e-40
    for largest in (0.5, 2.0, 1e-20, 3e38):
        own = quantize_static(torch.from_numpy(x), FORMATS[name], largest)
        wanted = numerics.quantize_static(x, FORMATS[name], largest)
        for theirs, ours in zip(wanted, own, strict=True):
            assert same_bits(theirs.astype(np.float32), ours.numpy()).ok


def test_the_candidate_of_the_least_error() -> None:
    random = np.random.default_rng(1)
    halves = random.standard_t(3, (200, 2, 16)).astype(np.float32)
    weight = random.uniform(0.1, 1, 200).astype(np.float32)
    guidance = HalfWeights(3.0, 2.0)
    rows = Rows(torch.from_numpy(halves), torch.from_numpy(weight), guidance)
    candidates = quantiles(rows.halves, [0.9, 0.99, 0.999, 1])
    magnitudes = np.sort(np.abs(halves).ravel())
    assert candidates == [float(magnitudes[i - 1]) for i in (5760, 6336, 6394, 6400)]

    def error(largest: float) -> float:
        """In numpy: both halves and u + 3 (c - u), which counts twice; steps by their weight."""
        step = largest / 12
        grid = np.array([0, 1, 2, 3, 4, 6, 8, 12]) * step
        magnitude = np.minimum(np.abs(halves).astype(np.float64), largest)
        nearest = grid[np.abs(magnitude[..., None] - grid).argmin(axis=-1)]
        difference = np.copysign(nearest, halves) - halves
        u, c = difference[:, 0], difference[:, 1]
        both = np.square(difference).mean(axis=(1, 2))
        guided = np.square(u + 3 * (c - u)).mean(axis=1)
        return float((weight / weight.sum()) @ (both + 2 * guided) / 3)

    errors = [error(largest) for largest in candidates]
    assert len(set(errors)) == 4
    best = best_largest(rows, FORMATS["e2m1"], candidates)
    assert best == candidates[errors.index(min(errors))]
    assert best < candidates[-1]


def test_reparametrized_inputs_under_one_scale_are_inputs_under_scales_of_their_own() -> None:
    """RepQ-ViT's algebra with symmetric ranges, in numpy, one input at a time."""
    random = np.random.default_rng(2)
    x = random.standard_t(3, (300, 8)).astype(np.float32) * np.logspace(-2, 2, 8, dtype=np.float32)
    x[:, 5] = 0
    fmt, shares = FORMATS["int4"], [0.98, 0.99, 1.0]
    rows = Rows(torch.from_numpy(x[:, None]), torch.ones(300), HalfWeights(1.0, 0.0))
    weight = torch.from_numpy(random.standard_normal((4, 8)).astype(np.float32))
    second = Second(torch.eye(8, dtype=torch.float64))
    given = LayerInputs("a", second, rows=lambda: rows, weight=weight, bias=None)
    spec = LayerSpec.of("int6", "int4", 8)
    drafts = {name: Draft(name, weight, spec) for name in "ab"}
    evidence = Evidence(lambda draft: draft, inputs=lambda draft: given)
    made = STAGES["reparametrize"](shares="0.98 0.99 1").apply(drafts, evidence)
    (one,) = made["a"].spec.input_ops
    assert made["a"].spec == made["b"].spec, "one vector, and one scale"

    ranges = []
    for k in range(8):
        ordered = np.sort(np.abs(x[:, k]))
        tried = [float(ordered[round(share * 300) - 1]) for share in shares]

        def error(largest: float, k: int = k) -> float:
            column = x[:, k].astype(np.float64)
            step = largest / 7 if largest else 1.0
            value = np.clip(np.rint(column / step), -7, 7) * step
            return float(np.square(value - column).sum())

        ranges.append(min(tried, key=error))
    ranges[5] = max(ranges)
    assert len({round(r / float(np.abs(x[:, k]).max() or r), 3) for k, r in enumerate(ranges)}) > 1
    common = np.mean(ranges)
    assert made["a"].spec.largest == pytest.approx(common, rel=1e-6)
    factor = one.tensors["factor"]
    assert np.allclose(factor, common / np.array(ranges), rtol=1e-6)
    assert np.allclose(made["a"].weight.numpy() * factor, weight.numpy(), rtol=1e-6)
    q, scale = numerics.quantize_static(x * factor, fmt, float(common))
    steps = np.array(ranges) / 7
    own = np.clip(np.rint(x / steps), -7, 7) * steps
    assert np.allclose(q * scale / factor, own, rtol=1e-4, atol=1e-9)


def test_a_layer_that_received_zeros_has_a_scale() -> None:
    rows = Rows(torch.zeros(3, 1, 8), torch.ones(3), HalfWeights(1.0, 0.0))
    spec = LayerSpec.of("e2m1", "int8", 8).with_largest(
        best_largest(rows, FORMATS["int8"], quantiles(rows.halves, [1]))
    )
    assert spec.largest == float(numerics.SMALLEST_AMAX)


@pytest.mark.parametrize("shares", ["", "0", "0.5 2", "most"])
def test_shares_that_are_none(shares: str) -> None:
    with pytest.raises(UsageError, match=r"static\.shares .*: expected numbers in \(0, 1\]"):
        STAGES["static"](shares=shares)
