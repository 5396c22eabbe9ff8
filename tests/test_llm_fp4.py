"""LLM-FP4: pre-shifted exponent biases and the joint search, against the paper's formulas in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.grid import quantized_values
from fp4dit_onnx.calibration.layer_inputs import LayerInputs, Second
from fp4dit_onnx.calibration.moments import HalfWeights, Rows
from fp4dit_onnx.calibration.output_search import OutputSearch, Settings, exponent_shifts
from fp4dit_onnx.calibration.stages import STAGES
from fp4dit_onnx.calibration.stages.absmax import Absmax
from fp4dit_onnx.calibration.stages.nearest import Nearest
from fp4dit_onnx.calibration.stages.stage import Evidence, LayerStage
from fp4dit_onnx.numbers.formats import FORMATS, FloatFormat
from fp4dit_onnx.spec.spec import LayerSpec, TensorSpec

Array = npt.NDArray[Any]


def by_exponent_bias(x: Array, fmt: FloatFormat, bias: Array) -> Array:
    """The quantizer of the paper: a real exponent bias per element, float64."""
    e, m = fmt.exponent_bits, fmt.mantissa_bits
    most = 2.0 ** (2**e - bias - 1) * (2 - 2.0**-m)
    clipped = np.clip(x.astype(np.float64), -most, most)
    with np.errstate(divide="ignore"):
        place = np.floor(np.log2(np.abs(clipped)) + bias + 1e-12)
    step = 2.0 ** (np.maximum(place, 1) - m - bias)
    return np.asarray(step * np.rint(clipped / step))


def bias_of(largest: Array, fmt: FloatFormat) -> Array:
    """The exponent bias under which the largest code is `largest`."""
    constant = 2.0**fmt.exponent_bits + np.log2(2 - 2.0**-fmt.mantissa_bits) - 1
    return np.asarray(constant - np.log2(largest))


FLOATS = [FORMATS[name] for name in ("e2m1", "e1m2", "e2m3", "e3m2", "e3m4")]


@pytest.mark.parametrize("fmt", FLOATS, ids=lambda f: f.name)
def test_shifted_inputs_under_one_scale_are_inputs_with_biases_of_their_own(
    fmt: FloatFormat,
) -> None:
    """Products x 2^s under c, divided again, are x with the bias rho + s, as published."""
    random = np.random.default_rng(0)
    x = (random.standard_normal((200, 24)) * 2.0 ** random.uniform(-9, 3, 24)).astype(np.float32)
    peaks = np.abs(x).max(axis=0)
    peaks[3] = x[:, 3] = 0
    own = np.where(peaks > 0, peaks, peaks.max())
    bias, rho = bias_of(own, fmt), bias_of(peaks.max(), fmt)
    high = np.rint(rho) + 2**fmt.exponent_bits - 1
    wanted = np.clip(np.rint(bias), np.rint(rho), high) - np.rint(rho)
    shifts = exponent_shifts(torch.from_numpy(peaks), fmt.exponent_bits, fmt.mantissa_bits)
    assert shifts.tolist() == np.where(peaks > 0, wanted, 0).tolist()
    assert set(shifts.tolist()) == set(range(2**fmt.exponent_bits)), "of every size"

    largest = float(np.float32(peaks.max()))
    spec = TensorSpec.of_activations(fmt.name, largest=largest)
    powers = torch.exp2(shifts).float()
    found = quantized_values(torch.from_numpy(x) * powers, spec) / powers
    published = by_exponent_bias(x, fmt, bias_of(np.float64(largest), fmt) + shifts.numpy())
    assert np.allclose(found.numpy(), published, rtol=1e-5, atol=0)


def test_an_integer_grid_has_no_shifts() -> None:
    assert not exponent_shifts(torch.tensor([1.0, 1e-3]), 0, 7).any()
    assert not exponent_shifts(torch.zeros(3), 2, 1).any()


def test_linears_that_read_one_tensor_share_their_powers_of_two() -> None:
    """The weight is divided by them, exactly; a layer in float stays as it is."""
    peaks = torch.tensor([[8.0, 1.0, 0.1, 3.9], [2.0, 1.0, 0.2, 4.1]])
    given = LayerInputs(
        "a",
        Second(torch.eye(4, dtype=torch.float64)),
        rows=lambda: Rows(torch.zeros(1, 1, 4), torch.ones(1), HalfWeights(1.0, 0.0)),
        peaks=lambda: peaks,
        weight=torch.eye(4),
        bias=None,
    )
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    quantized, floats = (LayerSpec.of("e2m1", act, 8) for act in ("e2m1", None))
    specs = {"a": quantized, "b": quantized, "c": floats}
    drafts = {name: Draft(name, weight, spec) for name, spec in specs.items()}
    made = STAGES["preshift"]().apply(
        drafts, Evidence(lambda draft: draft, inputs=lambda draft: given)
    )
    (one,) = made["a"].spec.input_ops
    assert one.tensors["factor"].tolist() == [1, 8, 8, 2], "at most 2^3 of two exponent bits"
    assert made["a"].spec == made["b"].spec
    assert torch.equal(made["b"].weight * torch.tensor([1.0, 8, 8, 2]), weight)
    assert made["c"] is drafts["c"]


# --- the search --------------------------------------------------------------------------------


def layer_inputs(halves: Array, weight: Array, importance: Array, guided: float = 2.0) -> Any:
    """What a layer receives; both halves of guidance."""
    rows = Rows(torch.from_numpy(halves), torch.from_numpy(importance), HalfWeights(3.0, guided))
    second = Second(torch.eye(halves.shape[-1], dtype=torch.float64))
    return LayerInputs(
        reader="fc",
        second=second,
        rows=lambda: rows,
        weight=torch.from_numpy(weight),
        bias=None,
    )


@pytest.fixture
def case() -> tuple[Draft, Any]:
    """A layer of 8 x 16 with heavy tails on both sides."""
    random = np.random.default_rng(1)
    weight = random.standard_t(3, (8, 16)).astype(np.float32)
    halves = random.standard_t(2, (40, 2, 16)).astype(np.float32)
    importance = random.uniform(0.1, 1, 40).astype(np.float32)
    draft = Draft("fc", torch.from_numpy(weight), LayerSpec.of("e2m1", "e2m1", 65536))
    return draft, layer_inputs(halves, weight, importance)


def apply(*stages: LayerStage, draft: Draft) -> Draft:
    """The draft after stages that look at weights alone."""
    for stage in stages:
        draft = stage.layer(draft, Evidence(lambda one: one))
    return draft


SETTINGS = Settings(candidates=12, rows=40)
SHARES = np.linspace(0.1, 1.2, 12)


def test_the_error_is_that_of_the_rows(case: tuple[Draft, Any]) -> None:
    """Summed over output channels, and for all of them what `LayerInputs.error` says."""
    draft, given = case
    search = OutputSearch(draft, given, SETTINGS)
    made = apply(Absmax(), Nearest(), draft=draft)
    weight = torch.from_numpy(made.layer().weight())
    found = search.error(search.activations(draft.spec.input), weight)
    assert found.shape == (8,)
    count = (1 + given.rows().guidance.weight) * 8
    assert float(found.sum()) / count == pytest.approx(given.error(made), rel=1e-4)


def test_every_channel_has_its_best_scale(case: tuple[Draft, Any]) -> None:
    """Against numpy, one channel and candidate at a time, by the paper's quantizer."""
    draft, given = case
    fmt = FORMATS["e2m1"]
    search = OutputSearch(draft, given, SETTINGS)
    received = search.activations(draft.spec.input)
    scale, _, total = search.best_scale(received, draft.spec)
    weight = draft.weight.numpy()
    wanted = (search.activations(None).numpy() @ weight.T).astype(np.float64)
    sum_of_least = 0.0
    for n in range(8):
        most = np.abs(weight[n]).max()
        errors = []
        for share in SHARES:
            step = np.float64(np.float16(np.float32(share) * (most / np.float32(12))))
            row = by_exponent_bias(weight[n], fmt, bias_of(np.float64(12 * step), fmt))
            errors.append(np.square(received.numpy() @ row - wanted[:, n]).sum())
        best = int(np.argmin(errors))
        share = float(scale[n, 0]) * 12 / float(most)
        assert share == pytest.approx(SHARES[best], rel=2e-3)
        sum_of_least += errors[best]
    assert total == pytest.approx(sum_of_least, rel=1e-4)
    assert (
        len(
            {
                round(float(s) * 12 / float(np.abs(w).max()), 2)
                for s, w in zip(scale, weight, strict=True)
            }
        )
        > 2
    )


def test_the_activations_have_their_best_largest(case: tuple[Draft, Any]) -> None:
    draft, given = case
    search = OutputSearch(draft, given, SETTINGS)
    spec, error = search.best_largest(["e2m1"], draft.weight)
    most = np.abs(given.rows().halves.numpy()).max()
    tried = {}
    for share in SHARES:
        one = TensorSpec.of_activations("e2m1", largest=float(np.float32(share) * most))
        difference = search.activations(one).numpy() - search.activations(None).numpy()
        tried[share] = np.square(difference.astype(np.float64) @ draft.weight.numpy().T).sum()
    best = min(tried, key=tried.__getitem__)
    assert spec.largest == pytest.approx(best * most, rel=1e-5)
    assert error == pytest.approx(tried[best], rel=1e-3)
    assert best < 1


def test_more_rounds_and_formats_do_not_err_more(case: tuple[Draft, Any]) -> None:
    """By the error that the search looks at, and the chosen formats are among those given."""
    draft, given = case
    search = OutputSearch(draft, given, SETTINGS)
    errors = []
    for weights, activations in (
        (["e2m1"], ["e2m1"]),
        (["e2m1", "e1m2", "e3m0"], ["e2m1", "e3m0"]),
    ):
        spec = search.joint(draft.spec, weights, activations, 2)
        assert spec.weight.format in weights
        assert spec.input is not None
        assert spec.input.format in activations
        _, _, error = search.best_scale(search.activations(spec.input), spec)
        errors.append(error)
    assert errors[1] < errors[0]
