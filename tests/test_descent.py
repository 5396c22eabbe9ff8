"""Training on mini-batches: what is added to the error counts, and parameters stay in their limits."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch

from fp4dit_onnx.calibration import bounds
from fp4dit_onnx.calibration.adaround import rectified_sigmoid
from fp4dit_onnx.calibration.descent import Descent, Optimizer, stepped_apart
from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.evidence import Objective
from fp4dit_onnx.calibration.ranges import absmax_scale
from fp4dit_onnx.calibration.reconstruct import AdaptiveLinear, train_rounding
from fp4dit_onnx.calibration.samples import Array, Tape
from fp4dit_onnx.calibration.stages.adaround import AdaRound
from fp4dit_onnx.calibration.stages.dqc import Dqc
from fp4dit_onnx.families.guidance import Guidance, Guided
from fp4dit_onnx.spec.spec import LayerSpec

N, K, SAMPLES = 6, 16, 32
SPEC = LayerSpec.of("int4", None, 8)


def objective(weight: Any, folder: Path) -> Objective:
    """A linear's outputs of normal inputs."""
    x = torch.randn(SAMPLES, weight.shape[1], generator=torch.Generator().manual_seed(2))
    tape = Tape(folder / "x", SAMPLES)
    tape.write(0, ((x,), {}), SAMPLES)
    target = Array(folder / "y.npy")
    target.create(SAMPLES, x @ weight.T)
    target.write(0, x @ weight.T)
    return Objective(tape.finish(torch.ones(SAMPLES), paired=False), {0: target}, Guided(), 1.0)


def draft(k: int = K) -> Draft:
    weight = torch.randn(N, k, generator=torch.Generator().manual_seed(1)) * 0.1
    return Draft("fc", weight, SPEC, scale=absmax_scale(weight, SPEC))


def openness(penalty: float, folder: Path) -> float:
    """How far from both neighbours weights lie on average after training; 0.5 at most."""
    given, method = draft(), AdaRound(iterations=200, batch=8, penalty=penalty)
    layer = AdaptiveLinear(given, None, method)
    train_rounding(layer, [layer], objective(given.weight, folder), method, seed=0)
    h = rectified_sigmoid(layer.parameter / layer.unit).detach()
    return float(torch.minimum(h, 1 - h).mean())


def test_the_penalty_brings_weights_to_a_neighbour(tmp_path: Path) -> None:
    without, usual = openness(0.0, tmp_path / "a"), openness(5.0, tmp_path / "b")
    assert without > 0.1
    assert usual < without / 2


def test_the_penalty_begins_after_the_warm_up(tmp_path: Path) -> None:
    """And sharpens: its exponent falls (FP4DiT's schedule)."""
    given, told = draft(), []
    layer = AdaptiveLinear(given, None, method := AdaRound(iterations=10, batch=8, warm_up=0.2))

    def note(_: float) -> None:
        told.append((layer.beta, layer.opened is not None))

    train_rounding(layer, [layer], objective(given.weight, tmp_path), method, seed=0, on_step=note)
    assert told[:2] == [(None, False)] * 2
    assert told[2] == (method.beta_start, True)
    exponents = [beta for beta, _ in told[2:]]
    assert exponents == sorted(exponents, reverse=True)
    assert method.beta_end < exponents[-1] < exponents[0]


@pytest.mark.parametrize("rows", [N, 3, 1])
def test_weights_that_are_made_again_have_the_same_bits(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once or some rows at a time; kept or made again for their gradients.

    A row is a multiple of torch's vectors: what lies beyond them is computed by other code there.
    """
    given, method = draft(k=64), AdaRound(iterations=200, batch=8)

    def trained(folder: Path) -> torch.Tensor:
        layer = AdaptiveLinear(given, None, method)
        wanted = objective(given.weight, folder)
        assert train_rounding(layer, [layer], wanted, method, seed=0) < 1  # else it is not kept
        return layer.parameter.detach()

    kept = trained(tmp_path / "kept")
    monkeypatch.setattr("fp4dit_onnx.calibration.reconstruct.SMALL", 0)
    monkeypatch.setattr("fp4dit_onnx.calibration.reconstruct.TOGETHER", rows * 64)
    assert torch.equal(trained(tmp_path / "again"), kept)


def test_parameters_that_move_apart_move_as_together() -> None:
    def moved(*, apart: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(K, K), torch.nn.Tanh(), torch.nn.Linear(K, N))
        x, own = torch.randn(8, K), [*layers.parameters()]
        with ExitStack() as stack:
            optimizer: Optimizer = torch.optim.Adam(own, lr=1e-2)
            if apart:
                optimizer = stack.enter_context(stepped_apart(own, 1e-2))
            for _ in range(5):
                optimizer.zero_grad()
                layers(x).square().mean().backward()
                optimizer.step()
                assert not apart or all(parameter.grad is None for parameter in own)
        return [parameter.detach() for parameter in own]

    for one, other in zip(moved(apart=True), moved(apart=False), strict=True):
        assert torch.equal(one, other)


def test_bounds_stay_within_their_limits(tmp_path: Path) -> None:
    given = draft()
    layer = bounds.BoundedLinear(given, None)
    method = Dqc(iterations=5, batch=8, learning_rate=50.0)
    descent = Descent(layer, objective(10 * given.weight, tmp_path), method.batch)
    seen: list[float] = []
    bounds._train(descent, [layer], method, 0, lambda _: seen.append(layer.ratios.tolist()[0]))
    assert max(seen) == bounds.MOST_RATIO, "one step of this rate would go far beyond it"


def test_each_step_is_told_with_its_error(tmp_path: Path) -> None:
    given, told, after = draft(), [], []
    linear = torch.nn.Linear(K, N, bias=False)
    descent = Descent(linear, objective(given.weight, tmp_path), SAMPLES)
    unit = descent.unit()
    assert float(descent.error(unit)) == pytest.approx(1)
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-2)
    with torch.no_grad():  # as solving is
        descent.run(
            optimizer,
            unit,
            60,
            0,
            told.append,
            after=lambda: after.append(torch.is_grad_enabled()),
        )
    assert len(told) == 60
    assert after == [False] * 60
    assert told[0] == pytest.approx(1)
    assert told[-1] < 0.3
    assert float(descent.error(unit)) < told[-1] * 1.01
    assert replace(descent, batch=4)._pairs == 4


def test_gradients_of_the_guided_error_add_up_in_one_order(tmp_path: Path) -> None:
    """As in releases before: another order is another last bit, and in time other codes."""
    torch.manual_seed(0)
    x, target, weight = torch.randn(8, 500), torch.randn(8, 500), torch.rand(4)
    tape = Tape(tmp_path / "arguments", 8)
    (tmp_path / "arguments").mkdir(exist_ok=True)
    tape.write(0, ((x,), {}), 8)
    kept = Array(tmp_path / "target.npy")
    kept.create(8, target)
    kept.write(0, target)
    guided = Guided(Guidance(), 4.5)
    objective = Objective(tape.finish(weight, paired=True), {0: kept}, guided, 1.0)
    factor = torch.ones(500, requires_grad=True)
    found = objective.errors(lambda a: a * factor, torch.arange(4)).sum()
    (gradient,) = torch.autograd.grad(found, factor)

    unconditional, conditional = (x * factor - target).chunk(2)
    combined = unconditional + 4.5 * (conditional - unconditional)
    halves = (unconditional.square() + conditional.square()).mean(dim=1) / 2
    both = torch.stack([halves, combined.square().mean(dim=1)])
    (wanted,) = torch.autograd.grad((weight * both).mean(dim=1).sum(), factor)
    assert torch.equal(gradient, wanted)
