"""Learning the rounding of a module's linears so that its output stays close to float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fp4dit_onnx.calibration.adaround import (
    initial_parameter,
    neighbours,
    rectified_sigmoid,
    regularizer,
)
from fp4dit_onnx.calibration.descent import Descent
from fp4dit_onnx.calibration.draft import Draft, Drafts
from fp4dit_onnx.calibration.evidence import FloatUnit, Objective
from fp4dit_onnx.calibration.rounding import packed
from fp4dit_onnx.calibration.simulate import branch_tensors, low_rank
from fp4dit_onnx.calibration.transforming import transformed
from fp4dit_onnx.network.execution import HOST, Execution, host

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.stages.adaround import AdaRound

__all__ = ["AdaptiveLinear", "train_rounding", "trained"]


class AdaptiveLinear(torch.nn.Module):
    """A linear whose weight lies between its grid neighbours, at a trained place.

    The parameter is V' = s V with s the step of each weight (FP4DiT equation 8), which makes the
    gradient independent of s; without `scale_aware` it is V. Adam moves V' by about the learning
    rate a step, so V by rate / s: a floor under s keeps that below ``largest_move``.

    Neighbours are found on the host, and codes are made of them there; they are trained in float32 on
    any device, and the weight takes the type of the activations.

    Args:
        draft: the layer, with its scales.
        bias: [N] or None.
        method: settings.
        execution: where it is trained.
    """

    def __init__(
        self,
        draft: Draft,
        bias: torch.Tensor | None,
        method: AdaRound,
        execution: Execution = HOST,
    ) -> None:
        super().__init__()
        assert draft.scale is not None, draft.name
        self.draft, self.bias = draft, bias
        spec = draft.spec
        self.branch = branch_tensors(spec, execution.device)
        place = neighbours(draft.weight, draft.scale, spec.weight_format, spec.group_size)
        step = place.step * place.scale
        floor = method.learning_rate / method.largest_move
        unit = step.clamp(min=floor) if method.scale_aware else torch.ones_like(step)
        self._grid, self.place = place, place.to(execution.device)
        self.unit = execution.there(unit)
        self.parameter = torch.nn.Parameter(execution.there(self._start()))
        self.hard = False

    def _start(self) -> torch.Tensor:
        """The parameter at the float weight, on the host."""
        return host(self.unit) * initial_parameter(self._grid.remainder)

    def openness(self) -> torch.Tensor:
        """H in [0, 1] of every weight, float32 [N, K]; 0 or 1 while `hard`."""
        if self.hard:
            return (self.parameter >= 0).float()
        return rectified_sigmoid(self.parameter / self.unit)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N] with float activations, as FP4DiT calibrates weights."""
        turned = transformed(x, self.draft.spec.input_ops)
        self.h = self.openness()
        weight = (self.place.blend(self.h) * self.place.scale).to(x.dtype)
        y = torch.nn.functional.linear(turned, weight, self.bias)
        return y + low_rank(x, self.branch) if self.branch else y

    @torch.no_grad()
    def reset(self) -> None:
        """Go back to rounding to nearest."""
        self.parameter.copy_(self._start())

    @torch.no_grad()
    def harden(self) -> Draft:
        """The draft with every weight at the neighbour that its parameter chose."""
        integers = self._grid.blend(host(self.parameter >= 0).float())
        return replace(self.draft, codes=packed(integers, self.draft.spec.weight_format))


def trained(
    drafts: Drafts,
    method: AdaRound,
    unit: FloatUnit,
    seed: int,
    on_step: Callable[[float], None] = lambda error: None,
) -> Drafts:
    """The drafts with trained codes, and the unit's error in units of nearest rounding's.

    Args:
        drafts: the unit's layers, with their scales.
        method: settings.
        unit: the float unit, left as it was.
        seed: of the mini-batches.
        on_step: called with the reconstruction error after each step.
    """
    part, where = unit.part, unit.part.parts.execution
    linears = {n: AdaptiveLinear(d, part.linear(n).bias, method, where) for n, d in drafts.items()}
    with part.replaced(linears):
        error = train_rounding(
            part.module, [*linears.values()], unit.objective, method, seed=seed, on_step=on_step
        )
    return {name: replace(linear.harden(), error=error) for name, linear in linears.items()}


def _hardened(layers: Sequence[AdaptiveLinear], *, hard: bool) -> None:
    for layer in layers:
        layer.hard = hard


def train_rounding(
    module: Callable[..., Any],
    layers: Sequence[AdaptiveLinear],
    objective: Objective,
    method: AdaRound,
    *,
    seed: int,
    on_step: Callable[[float], None] = lambda loss: None,
) -> float:
    """Train the parameters of `layers`; where that does not help they stay at the nearest.

    The loss is the reconstruction error in units of what rounding to nearest gives, plus the mean
    of ``1 - |2h - 1|^beta`` times the penalty (FP4DiT sums both; a mean carries over from layer to
    layer and model to model).

    Args:
        module: the block or linear that holds `layers`.
        layers: with soft weights.
        objective: what to reproduce.
        method: settings.
        seed: of the mini-batches.
        on_step: called with the reconstruction error after each step.

    Returns:
        The error of the trained rounding, 1 being that of rounding to nearest.
    """
    descent = Descent(module, objective, method.batch)
    _hardened(layers, hard=True)
    unit = descent.unit()
    _hardened(layers, hard=False)
    optimizer = torch.optim.Adam([layer.parameter for layer in layers], lr=method.learning_rate)
    weights = sum(layer.parameter.numel() for layer in layers)

    def penalty(step: int) -> torch.Tensor | None:
        done = step / method.iterations
        if done < method.warm_up:
            return None
        beta = _beta(method, done)
        opened = torch.stack([regularizer(layer.h, beta) for layer in layers]).sum()
        return method.penalty * opened / weights

    descent.run(optimizer, unit, method.iterations, seed, on_step, added=penalty)
    _hardened(layers, hard=True)
    found = float(descent.error(unit))
    if not found < 1:
        for layer in layers:
            layer.reset()
        return 1.0
    return found


def _beta(method: AdaRound, done: float) -> float:
    """The regularizer's exponent when a share `done` of the steps is done."""
    share = (done - method.warm_up) / (1 - method.warm_up)
    return method.beta_start + (method.beta_end - method.beta_start) * share
