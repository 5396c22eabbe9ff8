"""Which steps of the sampler matter, and how samples are spread over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from toy_network import (
    BATCH,
    STEPS,
    sampler_of,
)

from fp4dit_onnx.calibration.applying import quantize_layer
from fp4dit_onnx.calibration.importance import FLOOR, step_importance, step_shares
from fp4dit_onnx.calibration.record import (
    choose,
)
from fp4dit_onnx.families.guidance import Guided
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedState


def test_samples_go_where_errors_matter() -> None:
    sampler = sampler_of(None)
    choice = choose(sampler, 64, [0.1, 0.1, 0.1, 1.0], 0.5, seed=0)
    counts = [0] * STEPS
    for call, rows in choice.rows.items():
        counts[call % STEPS] += len(rows)
        assert len(set(rows.tolist())) == len(rows)
        assert rows.max() < BATCH
    # 32 pairs: half evenly, 4 a step; half by importance, but a step has only 12 images.
    assert counts == [5, 5, 5, 12]
    assert choice.count == sum(counts)
    assert float(choice.weight.mean()) == pytest.approx(1)
    # Each step's weights add up to its importance.
    ordered = [step % STEPS for step, rows in choice.rows.items() for _ in rows]
    sums = np.bincount(ordered, choice.weight.numpy())
    assert np.allclose(sums / sums[3], [0.1, 0.1, 0.1, 1.0])


def test_shares_are_a_mixture() -> None:
    assert np.allclose(step_shares([1, 3], 1.0), [0.5, 0.5])
    assert np.allclose(step_shares([1, 3], 0.0), [0.25, 0.75])


def test_importance_is_what_an_error_costs() -> None:
    """Where x' = x - a_t f(x) with f blind to x, an error at t changes the result by a_t times it."""
    gains, sizes = [0.5, 0.1, 0.02, 1.0], [1.0, 4.0, 2.0, 0.5]
    linear = torch.nn.Linear(8, 8, bias=False).requires_grad_(requires_grad=False)

    class Blind(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Any, size: float) -> tuple[Any]:
            return (self.linear(torch.full_like(x, size)),)  # its error is in proportion to size

    network = Blind()

    def sample() -> Any:
        x = torch.zeros(3, 8)
        for gain, size in zip(gains, sizes, strict=True):
            x = x - gain * network(x, size)[0]
        return x

    layer = quantize_layer("linear", linear.weight, LayerSpec.of("e2m1", None, 8))
    state = QuantizedState({"linear": layer})
    found = step_importance(network, state, sample, 4, Guided())
    assert found == pytest.approx([0.25, FLOOR, FLOOR, 1.0], rel=1e-4)
    assert network.forward.__func__ is Blind.forward  # restored
