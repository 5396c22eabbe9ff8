"""GPTQ: against a dozen lines of numpy, and what it is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.gptq import compensated
from fp4dit_onnx.calibration.layer_inputs import LayerInputs, Second, inverse_factor
from fp4dit_onnx.calibration.moments import Rows
from fp4dit_onnx.calibration.ranges import absmax_scale, weighted_scale
from fp4dit_onnx.calibration.rounding import packed, round_to_nearest, rounded_to_nearest
from fp4dit_onnx.calibration.stages import Evidence
from fp4dit_onnx.calibration.stages.gptq import Gptq
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS, FloatFormat
from fp4dit_onnx.numbers.scale_formats import MULTIPLIED
from fp4dit_onnx.spec.spec import LayerSpec

K, N = 40, 12


def inputs(rows: int = 200, seed: int = 0) -> Any:
    """Correlated columns of very different size, one of them always 0."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((rows, K)) @ random.standard_normal((K, K))
    mixed *= np.exp(random.uniform(-2, 2, K))
    mixed[:, 7] = 0
    return mixed


def reference(
    weight: Any, scale: Any, moments: Any, fmt: FloatFormat, damping: float, ordered: bool
) -> Any:
    """The algorithm as the paper has it: one column at a time, all of the rest updated."""
    h = moments.copy()
    dead = np.diag(h) <= 0
    h[dead, dead] = 1
    h += damping * np.diag(h).mean() * np.eye(K)
    order = np.argsort(-np.diag(moments), kind="stable") if ordered else np.arange(K)
    inverse = np.linalg.inv(h[np.ix_(order, order)])
    u = np.linalg.cholesky(inverse).T
    rest, q = weight[:, order].astype(np.float64), np.zeros((N, K))
    step = np.repeat(scale.astype(np.float64), 8, axis=1)[:, order]
    for j in range(K):
        q[:, j] = numerics.round_to_grid((rest[:, j] / step[:, j]).astype(np.float32), fmt)
        error = (rest[:, j] - q[:, j] * step[:, j]) / u[j, j]
        rest[:, j:] -= np.outer(error, u[j, j:])
    found = np.zeros_like(q)
    found[:, order] = q
    return found


def given(moments: torch.Tensor) -> LayerInputs:
    """Inputs of these second moments, and no rows."""

    def no_rows() -> Rows:
        raise AssertionError

    return LayerInputs("fc", Second(moments), no_rows, torch.zeros(N, K), None)


def setup(name: str) -> tuple[Draft, Any, FloatFormat]:
    """A layer with its scales, the moments of its inputs, and its format."""
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(1)) * 0.05
    spec, x = LayerSpec.of(name, None, 8), inputs()
    draft = Draft("fc", weight, spec, scale=absmax_scale(weight, spec))
    return draft, torch.from_numpy(x.T @ x / len(x)), FORMATS[name]


@pytest.mark.parametrize("name", ["e2m1", "e1m2", "e3m0", "int4", "int8"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_against_the_reference(name: str, ordered: bool, block: int) -> None:
    draft, moments, fmt = setup(name)
    found = compensated(draft, given(moments), Gptq(block=block, ordered=ordered))
    weight, scale = draft.weight.numpy(), draft.scale.numpy()
    wanted = reference(weight, scale, moments.numpy(), fmt, 0.01, ordered)
    # float32 rests may tip a weight that lies on the fence between two values, and so later ones.
    assert np.mean(found.numpy() == wanted) > 0.98


def loss(error: Any, moments: Any) -> float:
    return float(torch.einsum("nk,kl,nl->", error.double(), moments, error.double()))


@pytest.mark.parametrize("name", ["e2m1", "e1m2", "int4"])
def test_the_output_error_is_far_below_that_of_nearest(name: str) -> None:
    draft, moments, fmt = setup(name)
    each = draft.scale.float().repeat_interleave(8, dim=1)
    nearest = round_to_nearest(draft.weight, draft.scale, fmt, 8)
    found = compensated(draft, given(moments), Gptq())
    before = loss(nearest * each - draft.weight, moments)
    assert loss(found * each - draft.weight, moments) < 0.5 * before
    same = compensated(draft, given(torch.eye(K, dtype=torch.float64)), Gptq())
    assert torch.equal(same, nearest), "without correlations nothing makes up for anything"


def test_the_loss_is_that_of_the_codes_whenever_it_is_asked_for() -> None:
    draft, moments, fmt = setup("e2m1")
    known = given(moments)
    each = draft.scale.float().repeat_interleave(8, dim=1)
    for integers in (
        round_to_nearest(draft.weight, draft.scale, fmt, 8),
        compensated(draft, known, Gptq()),
    ):
        made = replace(draft, codes=packed(integers, fmt))
        wanted = loss(integers * each - draft.weight, moments)
        assert known.loss(made) == pytest.approx(wanted, rel=1e-5)
        found = known.loss(made)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(known.second, "matrix", None)  # computed once
            assert known.loss(replace(made, error=0.5)) == found


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    moments = setup("e2m1")[1]
    factor = inverse_factor(moments, 0.01).double()
    damped = moments.clone()
    damped[7, 7] = 1
    damped += 0.01 * damped.diagonal().mean() * torch.eye(K)
    assert torch.allclose(factor.T @ factor, torch.linalg.inv(damped), rtol=1e-4)
    assert torch.equal(factor, factor.triu())


def test_moments_that_are_singular_are_named() -> None:
    draft = setup("e2m1")[0]
    with pytest.raises(
        UsageError, match="layer fc: the second moments of its inputs are singular"
    ):
        compensated(draft, given(2 * torch.eye(K).double() - 1), Gptq(damping=1e-9))


def test_groups_without_a_scale_are_zero() -> None:
    draft, moments, _ = setup("e2m1")
    draft.weight[3, 8:16] = 0
    draft = replace(draft, scale=absmax_scale(draft.weight, draft.spec))
    assert not compensated(draft, given(moments), Gptq())[3, 8:16].any()


@pytest.mark.parametrize("name", ["e2m1", "e1m2"])
def test_multipliers_of_weighted_scales(name: str) -> None:
    """A channel's float and a group's integer are searched together, and lose less than absmax."""
    weight, spec = setup(name)[0].weight, LayerSpec.of(name, None, 8, MULTIPLIED)
    counts = torch.from_numpy(np.exp(np.random.default_rng(2).uniform(-3, 3, K))).float()

    def lost(scale: torch.Tensor) -> float:
        made = rounded_to_nearest(Draft("fc", weight, spec, scale=scale)).layer()
        assert set(made.parts) == {"codes", "multipliers", "channel_scale"}
        return float(((torch.from_numpy(made.weight()) - weight).square() * counts).sum())

    assert lost(weighted_scale(weight, spec, counts)) < 0.85 * lost(absmax_scale(weight, spec))
    alike = weighted_scale(weight, spec, torch.ones(K))
    assert lost(weighted_scale(weight, spec, counts)) < lost(alike)


def test_a_layer_keeps_rounding_to_nearest_where_that_loses_less() -> None:
    draft, moments, _ = setup("e1m2")
    inputs_of = given(moments)
    found = Gptq().layer(draft, Evidence(rounded_to_nearest, inputs=lambda _: inputs_of))
    nearest = rounded_to_nearest(draft)
    assert found.error == inputs_of.loss(found) / inputs_of.loss(nearest) < 0.5
    white = given(torch.eye(K, dtype=torch.float64))
    same = Gptq().layer(draft, Evidence(rounded_to_nearest, inputs=lambda _: white))
    assert same.error == 1
    assert np.array_equal(same.codes, nearest.codes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"damping": 0}, "gptq.damping = 0"), ({"block": 0}, "gptq.block = 0")],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Gptq(**settings)
