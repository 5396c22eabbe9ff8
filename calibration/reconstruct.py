"""Learning the rounding of a module's linears so that its output stays close to float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from fp4dit_onnx.calibration.adaround import (
    Neighbours,
    StoredNeighbours,
    blended,
    initial_parameter,
    neighbours,
    rectified_sigmoid,
    regularizer,
)
from fp4dit_onnx.calibration.descent import Descent, stepped_apart
from fp4dit_onnx.calibration.draft import Draft, Drafts
from fp4dit_onnx.calibration.evidence import FloatUnit, Objective
from fp4dit_onnx.calibration.rounding import packed
from fp4dit_onnx.calibration.simulate import branch_tensors, low_rank
from fp4dit_onnx.calibration.transforming import transformed
from fp4dit_onnx.network.execution import HOST, Execution, host

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.stages.adaround import AdaRound

__all__ = ["AdaptiveLinear", "train_rounding", "trained", "training_bytes"]

SMALL = 2**22
"""Weights of a layer, below which what leads to them stays in memory, which takes less time."""
KEPT_BYTES, AGAIN_BYTES = 80, 40
"""Memory that training takes for a weight of a small layer and of a large one: itself as stored and in
float32, its neighbours on the grid, the parameter, Adam's two moments, what a step makes of them."""
TOGETHER = 2**24
"""Weights, at most, that are made of their parameters at a time, which takes some 80 bytes each. What
fewer take would be kept by the C library once it is freed."""


def training_bytes(weights: int) -> int:
    """Memory that a linear with so many weights takes while its rounding is trained."""
    return weights * (AGAIN_BYTES if weights > SMALL else KEPT_BYTES)


class AdaptiveLinear(torch.nn.Module):
    """A linear whose weight lies between its grid neighbours, at a trained place.

    The parameter is V' = s V with s the step of each weight (FP4DiT equation 8), which makes the
    gradient independent of s; without `scale_aware` it is V. Adam moves V' by about the learning
    rate a step, so V by rate / s: a floor under s keeps that below ``largest_move``.

    Neighbours are found on the host, and codes are made of them there; they are trained in float32 on
    any device, and the weight takes the type of the activations. All that leads from the parameters of
    large layers to their weights is made again where gradients are computed: kept, it would take some 40
    bytes a weight.

    Args:
        draft: the layer, with its scales.
        bias: [N] or None.
        method: settings.
        execution: where it is trained.

    Attributes:
        hard: whether each weight is at the neighbour that its parameter chose.
        beta: exponent of the regularizer; None for none.
        opened: with `beta`, the regularizer's sum over the weights when the module last ran.
    """

    def __init__(
        self,
        draft: Draft,
        bias: torch.Tensor | None,
        method: AdaRound,
        execution: Execution = HOST,
    ) -> None:
        super().__init__()
        self.draft, self.bias = draft, bias
        self.branch = branch_tensors(draft.spec, execution.device)
        self._floor = method.learning_rate / method.largest_move if method.scale_aware else None
        place, size = self._placed(), draft.spec.group_size
        self._place = StoredNeighbours.of(place, self._scale, size, execution.device)
        self.parameter = torch.nn.Parameter(execution.there(self._start(place)))
        self.hard = False
        self.beta: float | None = None
        self.opened: torch.Tensor | None = None

    @property
    def _scale(self) -> torch.Tensor:
        assert self.draft.scale is not None, self.draft.name
        return self.draft.scale

    def _placed(self) -> Neighbours:
        """On the host."""
        spec = self.draft.spec
        return neighbours(self.draft.weight, self._scale, spec.weight_format, spec.group_size)

    def _start(self, place: Neighbours) -> torch.Tensor:
        """The parameter at the float weight, on the host."""
        return host(self.unit) * initial_parameter(place.remainder)

    @property
    def unit(self) -> torch.Tensor:
        """What the parameter is measured in, float32 [N, K]."""
        _, step, each = self._place.made()
        return _unit(step, each, self._floor)

    def _rows(
        self, parameter: torch.Tensor, first: int, kind: torch.dtype, beta: float | None
    ) -> tuple[torch.Tensor, ...]:
        """Rows of the weight from the first on, and with `beta` the regularizer's sum over them."""
        lower, step, each = self._place.made(slice(first, first + len(parameter)))
        unit = _unit(step, each, self._floor)
        h = (parameter >= 0).float() if self.hard else rectified_sigmoid(parameter / unit)
        weight = (blended(lower, step, h, self._place.limit) * each).to(kind)
        return (weight,) if beta is None else (weight, regularizer(h, beta))

    def _weight(self, kind: torch.dtype) -> torch.Tensor:
        """The weight [N, K]."""
        count = -(-len(self.parameter) // -(-self.parameter.numel() // TOGETHER))
        made: Callable[..., Any] = self._rows
        if self.parameter.numel() > SMALL:
            made = partial(checkpoint, made, use_reentrant=False, preserve_rng_state=False)
        parts = [
            made(rows, number * count, kind, self.beta)
            for number, rows in enumerate(torch.split(self.parameter, count))
        ]
        self.opened = None
        if self.beta is not None:
            self.opened = torch.stack([opened for _, opened in parts]).sum()
        weights = [part[0] for part in parts]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N] with float activations, as FP4DiT calibrates weights."""
        turned = transformed(x, self.draft.spec.input_ops)
        y = torch.nn.functional.linear(turned, self._weight(x.dtype), self.bias)
        return y + low_rank(x, self.branch) if self.branch else y

    @torch.no_grad()
    def reset(self) -> None:
        """Go back to rounding to nearest."""
        self.parameter.copy_(self._start(self._placed()))

    @torch.no_grad()
    def harden(self) -> Draft:
        """The draft with every weight at the neighbour that its parameter chose."""
        integers = self._placed().blend(host(self.parameter >= 0).float())
        return replace(self.draft, codes=packed(integers, self.draft.spec.weight_format))


def _unit(step: torch.Tensor, scale: torch.Tensor, floor: float | None) -> torch.Tensor:
    """What parameters are measured in: steps of the weights, or 1."""
    return torch.ones_like(step) if floor is None else (step * scale).clamp(min=floor)


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
    parameters = [layer.parameter for layer in layers]
    weights = sum(parameter.numel() for parameter in parameters)

    def begin(step: int) -> None:
        done = step / method.iterations
        for layer in layers:
            layer.beta = None if done < method.warm_up else _beta(method, done)

    def penalty() -> torch.Tensor | None:
        opened = [layer.opened for layer in layers if layer.opened is not None]
        return method.penalty * torch.stack(opened).sum() / weights if opened else None

    with stepped_apart(parameters, method.learning_rate) as optimizer:
        descent.run(optimizer, unit, method.iterations, seed, on_step, begin=begin, added=penalty)
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
