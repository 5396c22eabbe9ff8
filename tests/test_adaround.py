"""Adaptive rounding: golden vectors, gradients, and what scale-awareness changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch

from fp4dit_onnx.calibration.adaround import (
    Neighbours,
    initial_parameter,
    neighbours,
    rectified_sigmoid,
    regularizer,
)
from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.grid import round_to_grid
from fp4dit_onnx.calibration.ranges import absmax_scale, mse_scale
from fp4dit_onnx.calibration.reconstruct import AdaptiveLinear
from fp4dit_onnx.calibration.rounding import round_to_nearest
from fp4dit_onnx.calibration.stages import Evidence
from fp4dit_onnx.calibration.stages.adaround import AdaRound
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.spec.spec import LayerSpec

FORMAT_NAMES = ["e2m1", "e1m2", "e3m0", "int4"]
METHOD = AdaRound()


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def placed(weight: Any, name: str, group: int = 8) -> Neighbours:
    fmt = FORMATS[name]
    return neighbours(
        weight, absmax_scale(weight, LayerSpec.of(fmt.name, None, group)), fmt, group
    )


def test_golden_vector() -> None:
    # methods.md 10.4: w = 0.37 on e2m1 with the group's limit at 6.
    weight = torch.tensor([[0.37, 6.0, 0, 0, 0, 0, 0, 0]])
    at = placed(weight, "e2m1")
    step = float((at.step * at.scale)[0, 0])
    start = initial_parameter(at.remainder)[0, 0]
    assert (step, float(at.lower[0, 0])) == (0.5, 0)
    assert float(at.remainder[0, 0]) == pytest.approx(0.74, abs=1e-6)
    assert float(start) == pytest.approx(0.8473, abs=5e-5)
    assert step * float(start) == pytest.approx(0.4236, abs=5e-5)
    soft = at.blend(rectified_sigmoid(initial_parameter(at.remainder))) * at.scale
    assert float(soft[0, 0]) == pytest.approx(0.37, abs=1e-6)
    hard = at.blend((initial_parameter(at.remainder) >= 0).float()) * at.scale
    assert float(hard[0, 0]) == 0.5


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_training_starts_from_the_float_weight(name: str) -> None:
    weight = normal(16, 40)
    at = placed(weight, name)
    soft = at.blend(rectified_sigmoid(initial_parameter(at.remainder))) * at.scale
    # float16 scales may cut the group's largest weight by 2^-11 of it.
    bound = weight.abs().amax() * 2.0**-10
    assert float((soft - weight).abs().amax()) <= float(bound)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_neighbours_are_the_grid_values_around(name: str) -> None:
    weight, fmt = normal(16, 40), FORMATS[name]
    at = placed(weight, name)
    nearest = round_to_nearest(
        weight, absmax_scale(weight, LayerSpec.of(fmt.name, None, 8)), fmt, 8
    )
    lower, upper = at.blend(torch.zeros(())), at.blend(torch.ones(()))
    assert bool(((nearest == lower) | (nearest == upper)).all())
    every = torch.arange(fmt.max_integer + 1, dtype=torch.float32)
    grid = torch.unique(round_to_grid(every, fmt))
    assert grid.numel() == 8  # 3 bits beside the sign
    assert bool(torch.isin(lower.abs(), grid).all() and torch.isin(upper.abs(), grid).all())


def test_an_all_zero_group_stays_zero() -> None:
    weight = normal(3, 16)
    weight[1, 8:] = 0
    at = placed(weight, "e2m1")
    for h in (0.0, 0.4, 1.0):
        assert bool(((at.blend(torch.tensor(h)) * at.scale)[1, 8:] == 0).all())
    assert bool(torch.isfinite(initial_parameter(at.remainder)).all())


def soft_weight(at: Neighbours, unit: Any, parameter: Any) -> Any:
    return at.blend(rectified_sigmoid(parameter / unit)) * at.scale


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_gradients_are_finite_differences(name: str) -> None:
    weight = normal(4, 16)
    at = placed(weight, name)
    at = Neighbours(
        *(getattr(at, f).double() for f in ("lower", "step", "remainder", "scale")), at.limit
    )
    unit = (at.step * at.scale).clamp(min=1e-3)
    x, target = normal(5, 16, seed=1).double(), normal(5, 4, seed=2).double()

    def loss(parameter: Any) -> Any:
        y = torch.nn.functional.linear(x, soft_weight(at, unit, parameter))
        h = rectified_sigmoid(parameter / unit)
        return (y - target).square().mean() + 0.3 * regularizer(h, 3.0) / h.numel()

    # Away from h = 0 and 1, where the rectified sigmoid has its corners.
    inside = at.remainder.clamp(0.2, 0.45)
    start = (unit * initial_parameter(inside)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(start), start)
    for i in range(4):
        for j in (0, 7, 15):
            step = 1e-5 * float(unit[i, j])
            moved = torch.zeros_like(start)
            moved[i, j] = step
            difference = (loss(start + moved) - loss(start - moved)).detach() / (2 * step)
            assert float(gradient[i, j]) == pytest.approx(float(difference), rel=1e-5, abs=1e-9)


def test_the_gradient_of_the_scaled_parameter_does_not_depend_on_the_step() -> None:
    # methods.md 10.4: dW/dV' = sigma'(V) (zeta - gamma), whatever s; dW/dV is s times that.
    weight = torch.tensor([[0.3, 1.2, 3.4, 6.0, -0.3, -1.2, -3.4, -6.0]])
    at = placed(weight, "e2m1")
    step = at.step * at.scale
    assert len(set(step[0].tolist())) == 3
    v = torch.full_like(step, 0.4)
    for unit, expected in ((step, torch.ones_like(step)), (torch.ones_like(step), step)):
        parameter = (unit * v).requires_grad_()
        soft = at.lower + at.step * rectified_sigmoid(parameter / unit)
        (gradient,) = torch.autograd.grad((soft * at.scale).sum(), parameter)
        assert torch.allclose(gradient / gradient[0, 0], expected / expected[0, 0], rtol=1e-6)


def test_integers_have_one_step() -> None:
    assert bool((placed(normal(8, 32), "int4").step == 1).all())
    assert len(torch.unique(placed(normal(8, 32), "e3m0").step)) > 3


def adaptive(name: str, **changes: float) -> AdaptiveLinear:
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 4)
    linear.weight.data *= 0.1
    method = replace(METHOD, **changes)
    weight, spec = linear.weight.detach(), LayerSpec.of(name, None, 8)
    draft = Draft("a", weight, spec, scale=absmax_scale(weight, spec))
    return AdaptiveLinear(draft, linear.bias, method)


def test_the_guard_bounds_a_step_of_the_parameter() -> None:
    rate, move = 3e-3, 0.5
    guarded = adaptive("e3m0", learning_rate=rate, largest_move=move)
    assert float((rate / guarded.unit).max()) <= move * (1 + 1e-6)
    free = adaptive("e3m0", learning_rate=rate, largest_move=1e9)
    assert float((rate / free.unit).max()) > 4 * move  # one step would cross the whole sigmoid


def test_an_untrained_layer_rounds_to_nearest() -> None:
    layer = adaptive("e1m2")
    torch.manual_seed(0)
    weight, fmt = torch.nn.Linear(16, 4).weight.detach() * 0.1, FORMATS["e1m2"]
    nearest = round_to_nearest(
        weight, absmax_scale(weight, LayerSpec.of(fmt.name, None, 8)), fmt, 8
    )
    assert torch.equal(torch.from_numpy(layer.harden().layer().integers()), nearest)


def test_the_regularizer_vanishes_at_hard_rounding() -> None:
    assert float(regularizer(torch.tensor([0.0, 1.0]), 7.0)) == 0
    assert float(regularizer(torch.tensor([0.5]), 7.0)) == 1
    assert float(regularizer(torch.tensor([0.8]), 2.0)) > float(
        regularizer(torch.tensor([0.95]), 2.0)
    )


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_the_mse_range_is_never_worse(name: str) -> None:
    weight, fmt = normal(32, 40), FORMATS[name]

    def error(scale: Any) -> Any:
        q = round_to_nearest(weight, scale, fmt, 8)
        each = scale.float().repeat_interleave(8, dim=1)[:, :40]
        return (q * each - weight).square().reshape(32, 5, 8).sum(-1)

    spec = LayerSpec.of(name, None, 8)
    full, searched = error(absmax_scale(weight, spec)), error(mse_scale(weight, spec, 0.7, 31))
    assert bool((searched <= full * (1 + 1e-5)).all())
    assert float(searched.sum()) < 0.99 * float(full.sum())


def test_units_without_a_layer_of_the_patterns_are_rounded_to_nearest() -> None:
    drafts = {
        f"blocks.{i}.fc": Draft(f"blocks.{i}.fc", torch.ones(2, 8), LayerSpec.of("e2m1", None, 8))
        for i in (1, 10)
    }

    def rounded(draft: Draft) -> Draft:
        return replace(draft, error=float(draft.name.split(".")[1]))

    stage, evidence = AdaRound(only="blocks.2.* blocks.3.fc"), Evidence(rounded=rounded)
    found = stage.apply(drafts, evidence)
    assert [draft.error for draft in found.values()] == [1, 10]
    with pytest.raises(AssertionError):  # there is nothing to train on
        AdaRound(only="blocks.1.*").apply(drafts, evidence)
