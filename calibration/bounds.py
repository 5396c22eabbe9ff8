"""Bounds of whole tensors: searched (DOBI), then trained by a unit's error (DQC); arXiv 2406.06649.

A bound c is the magnitude that becomes the format's largest integer; what exceeds it is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fp4dit_onnx.calibration.descent import Descent
from fp4dit_onnx.calibration.draft import Draft, Drafts
from fp4dit_onnx.calibration.evidence import FloatUnit
from fp4dit_onnx.calibration.grid import passed, quantized_values, round_to_grid, row_chunks
from fp4dit_onnx.calibration.ranges import as_stored
from fp4dit_onnx.calibration.rounding import rounded_to_nearest
from fp4dit_onnx.calibration.transforming import transformed
from fp4dit_onnx.network.execution import HOST, Execution, host, sum64
from fp4dit_onnx.numbers.formats import FloatFormat
from fp4dit_onnx.numbers.numerics import SMALLEST_AMAX, group_count

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.stages.dqc import Dqc

__all__ = ["BoundedLinear", "best_bound", "bounded", "common_scale", "distilled"]

LEAST_RATIO, MOST_RATIO = 0.02, 4.0
"""Of a trained bound to where it began."""


def bounded(x: torch.Tensor, bound: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """The quantized values of x (any shape, float32) under a bound (one number).

    Its gradient: 1 to x within the bound, 0 beyond; to the bound the sign of x beyond it and within the
    rounding error in units of the bound, as rounding counts as straight through.
    """
    step = bound / torch.full_like(bound, fmt.max_integer)
    t = torch.maximum(torch.minimum(x, bound), -bound) / step
    return passed(t, round_to_grid(t.detach(), fmt)) * step


def best_bound(weight: torch.Tensor, fmt: FloatFormat, steps: int) -> float:
    """Of the largest magnitude times 1, 1 - 1 / steps and so on, that of the least squared error."""
    most = float(weight.abs().max()) if weight.numel() else 0.0
    if most < float(SMALLEST_AMAX):
        return 0.0
    candidates = [most * (1 - i / steps) for i in range(steps)]
    errors = [
        sum(
            sum64((bounded(rows, torch.tensor(bound), fmt) - rows).square())
            for rows in row_chunks(weight)
        )
        for bound in candidates
    ]
    return candidates[errors.index(min(errors))]


def common_scale(draft: Draft, bound: float) -> torch.Tensor:
    """One scale for all groups of a weight, as stored: [N, G]."""
    spec = draft.spec
    n, k = draft.weight.shape
    full = np.full((n, group_count(k, spec.group_size)), bound, np.float32)
    scale = spec.scale_format.rounded(
        full / np.float32(spec.weight_format.max_integer), spec.weight_format
    )
    return as_stored(torch.from_numpy(scale), spec)


class BoundedLinear(torch.nn.Module):
    """A linear with a trained bound of its weight, and of its input where that has a constant scale.

    Parameters are the bounds' ratios to where they began. An input with other scales is quantized as
    it is at run time.

    Args:
        draft: the layer, its groups under one scale.
        bias: [N] or None.
        execution: where it is trained.
    """

    def __init__(
        self, draft: Draft, bias: torch.Tensor | None, execution: Execution = HOST
    ) -> None:
        super().__init__()
        assert draft.scale is not None, draft.name
        self.draft, self.bias, self.spec = draft, bias, draft.spec
        start = float(draft.scale.float().max()) * draft.spec.weight_format.max_integer
        self._weight_start = max(start, float(SMALLEST_AMAX))
        self._weight = execution.there(draft.weight)
        self.ratios = torch.nn.Parameter(execution.there(torch.ones(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N], both factors quantized."""
        spec, given = self.spec, self.spec.input
        values = transformed(x.float(), spec.input_ops)
        if given is not None and given.largest is not None:
            fmt = spec.activation_format
            assert fmt is not None
            values = bounded(values, self.ratios[1] * given.largest, fmt)
        elif given is not None:
            values = passed(values, quantized_values(values.detach(), given))
        weight = bounded(self._weight, self.ratios[0] * self._weight_start, spec.weight_format)
        bias = None if self.bias is None else self.bias.float()
        return torch.nn.functional.linear(values, weight, bias).to(x.dtype)

    @torch.no_grad()
    def reset(self) -> None:
        """Go back to the bounds that it began with."""
        self.ratios.fill_(1.0)

    @torch.no_grad()
    def finished(self) -> Draft:
        """The draft under the bounds as they are now, rounded to nearest."""
        of_weight, of_input = host(self.ratios).tolist()
        scale = common_scale(self.draft, of_weight * self._weight_start)
        spec = self.spec
        if spec.largest is not None:
            spec = spec.with_largest(max(of_input * spec.largest, float(SMALLEST_AMAX)))
        return rounded_to_nearest(replace(self.draft, spec=spec, scale=scale))


def distilled(
    drafts: Drafts,
    method: Dqc,
    unit: FloatUnit,
    seed: int,
    on_step: Callable[[float], None] = lambda error: None,
) -> Drafts:
    """The drafts under trained bounds, and the unit's error in units of that before training.

    Args:
        drafts: the unit's layers, with their scales.
        method: settings.
        unit: the float unit, left as it was.
        seed: of the mini-batches.
        on_step: called with the error after each step.
    """
    part, where = unit.part, unit.part.parts.execution
    linears = {n: BoundedLinear(d, part.linear(n).bias, where) for n, d in drafts.items()}
    with part.replaced(linears):
        descent = Descent(part.module, unit.objective, method.batch)
        error = _train(descent, [*linears.values()], method, seed, on_step)
    return {n: replace(linear.finished(), error=error) for n, linear in linears.items()}


def _train(
    descent: Descent,
    layers: Sequence[BoundedLinear],
    method: Dqc,
    seed: int,
    on_step: Callable[[float], None],
) -> float:
    """Train the bounds of `layers`; where that does not help they stay where they began."""
    unit = descent.unit()
    ratios = [layer.ratios for layer in layers]
    optimizer = torch.optim.Adam(ratios, lr=method.learning_rate, betas=(0.9, 0.99))

    def limit() -> None:
        for ratio in ratios:
            ratio.clamp_(LEAST_RATIO, MOST_RATIO)

    descent.run(optimizer, unit, method.iterations, seed, on_step, after=limit)
    found = float(descent.error(unit))
    if not found < 1:
        for layer in layers:
            layer.reset()
        return 1.0
    return found
