"""Training the rounding of a module's linears so that its output stays what it was in float."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fp4dit_onnx.calibration.adaround import (
    initial_parameter,
    neighbours,
    rectified_sigmoid,
    regularizer,
)
from fp4dit_onnx.calibration.methods import check_weight, packed_layer
from fp4dit_onnx.calibration.ranges import group_scale
from fp4dit_onnx.calibration.samples import Array, Samples
from fp4dit_onnx.calibration.simulate import place
from fp4dit_onnx.methods import AdaRound
from fp4dit_onnx.recipe import LayerSpec
from fp4dit_onnx.state import QuantizedLayer

__all__ = ["AdaptiveLinear", "Objective", "adaptive", "output_of", "train_rounding"]

NEAREST_PAIRS = 256
"""Pairs on which nearest and trained rounding are compared."""


class AdaptiveLinear(torch.nn.Module):
    """A linear whose weight lies between its grid neighbours, at a trained place.

    The parameter is V' = s V with s the step of each weight (FP4DiT equation 8), which makes the
    gradient independent of s; without `scale_aware` it is V. Adam moves V' by about the learning
    rate a step, so V by rate / s: a floor under s keeps that below ``largest_move``.

    Args:
        name: torch name of the layer.
        linear: the float layer.
        spec: formats and group size.
        method: settings.
        range_rule: how scales are found.
    """

    def __init__(
        self,
        name: str,
        linear: torch.nn.Linear,
        spec: LayerSpec,
        method: AdaRound,
        range_rule: str,
    ) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        check_weight(name, weight)
        fmt = spec.weight_format
        self.name, self.spec, self.bias = name, spec, linear.bias
        self.group_scale = group_scale(weight, fmt, spec.group_size, range_rule)
        self.place = neighbours(weight, self.group_scale, fmt, spec.group_size)
        step = self.place.step * self.place.scale
        floor = method.learning_rate / method.largest_move
        self.unit = step.clamp(min=floor) if method.scale_aware else torch.ones_like(step)
        start = initial_parameter(self.place.remainder)
        self.parameter = torch.nn.Parameter(self.unit * start)
        self.hard = False

    def openness(self) -> torch.Tensor:
        """H in [0, 1] of every weight, float32 [N, K]; 0 or 1 while `hard`."""
        if self.hard:
            return (self.parameter >= 0).float()
        return rectified_sigmoid(self.parameter / self.unit)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N] with float activations, as FP4DiT calibrates weights."""
        self.h = self.openness()
        weight = self.place.blend(self.h) * self.place.scale
        return torch.nn.functional.linear(x, weight, self.bias)

    @torch.no_grad()
    def reset(self) -> None:
        """Go back to rounding to nearest."""
        self.parameter.copy_(self.unit * initial_parameter(self.place.remainder))

    @torch.no_grad()
    def harden(self) -> QuantizedLayer:
        """The layer with every weight at the neighbour that its parameter chose."""
        integers = self.place.blend((self.parameter >= 0).float())
        return packed_layer(self.name, self.spec, integers, self.group_scale)


@contextmanager
def adaptive(
    network: torch.nn.Module,
    specs: Mapping[str, LayerSpec],
    method: AdaRound,
    range_rule: str,
) -> Iterator[list[AdaptiveLinear]]:
    """`network` with the float linears named in `specs` made adaptive, restored on exit."""
    originals = {name: network.get_submodule(name) for name in specs}
    layers: list[AdaptiveLinear] = []
    try:
        for name, spec in specs.items():
            linear = originals[name]
            assert isinstance(linear, torch.nn.Linear), name
            layers.append(AdaptiveLinear(name, linear, spec, method, range_rule))
            place(network, name, layers[-1])
        yield layers
    finally:
        for name, module in originals.items():
            place(network, name, module)


def output_of(module: Callable[..., Any], call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """The first result of `module` for a call."""
    args, kwargs = call
    out = module(*args, **kwargs)
    return out[0] if isinstance(out, tuple) else out


@dataclass(frozen=True)
class Objective:
    """How far a module is from its float self on recorded samples.

    Attributes:
        inputs: arguments, from the network quantized so far.
        target: [N, ...], the float module's output in the float network.
        guidance: of the sampler; 1 for none.
        guided: weight of the guided combination's error.
    """

    inputs: Samples
    target: Array
    guidance: float
    guided: float

    def errors(self, module: Callable[..., Any], pairs: torch.Tensor) -> torch.Tensor:
        """Mean squares over `pairs` (int64 [P]), each weighted as the loss weights its timestep.

        Returns:
            float32 [2] for twins: of both halves, and of ``u + guidance (c - u)``, which is what the
            sampler sees; float32 [1] without twins.
        """
        index = self.inputs.twins(pairs)
        output: torch.Tensor = output_of(module, self.inputs.take(index))
        rows = (output - self.target.read(index)).flatten(1)
        weight = self.inputs.weight[pairs]
        if not self.inputs.paired:
            return (weight * rows.square().mean(dim=1)).mean().reshape(1)
        unconditional, conditional = rows.chunk(2)
        combined = unconditional + self.guidance * (conditional - unconditional)
        halves = (unconditional.square() + conditional.square()).mean(dim=1) / 2
        both = torch.stack([halves, combined.square().mean(dim=1)])  # [2, P]
        errors: torch.Tensor = (weight * both).mean(dim=1)
        return errors

    @torch.no_grad()
    def total(
        self, module: Callable[..., Any], batch: int, limit: int = NEAREST_PAIRS
    ) -> torch.Tensor:
        """`errors` over up to `limit` pairs, the same ones every time."""
        count = min(self.inputs.pairs, limit)
        index = torch.from_numpy(np.linspace(0, self.inputs.pairs - 1, count).round().astype(int))
        parts = [self.errors(module, part) * len(part) for part in torch.split(index, batch)]
        return torch.stack(parts).sum(dim=0) / count

    def loss(self, errors: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        """One number of `errors`, each in its `unit`."""
        shares = errors / unit
        if shares.shape[0] == 1:
            return shares[0]
        return (shares[0] + self.guided * shares[1]) / (1 + self.guided)


def _hardened(layers: Sequence[AdaptiveLinear], *, hard: bool) -> None:
    for layer in layers:
        layer.hard = hard


@torch.enable_grad()
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
    random = np.random.default_rng(seed)
    pairs = max(1, method.batch // (2 if objective.inputs.paired else 1))
    _hardened(layers, hard=True)
    unit = objective.total(module, pairs * 4).clamp(min=1e-30)
    _hardened(layers, hard=False)
    optimizer = torch.optim.Adam([layer.parameter for layer in layers], lr=method.learning_rate)
    weights = sum(layer.parameter.numel() for layer in layers)
    for step in range(method.iterations):
        count = min(pairs, objective.inputs.pairs)
        chosen = torch.from_numpy(random.choice(objective.inputs.pairs, count, replace=False))
        error = objective.loss(objective.errors(module, chosen), unit)
        loss = error
        done = step / method.iterations
        if done >= method.warm_up:
            beta = _beta(method, done)
            opened = torch.stack([regularizer(layer.h, beta) for layer in layers]).sum()
            loss = loss + method.penalty * opened / weights
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        on_step(float(error.detach()))
    _hardened(layers, hard=True)
    found = float(objective.loss(objective.total(module, pairs * 4), unit))
    if not found < 1:
        for layer in layers:
            layer.reset()
        return 1.0
    return found


def _beta(method: AdaRound, done: float) -> float:
    """The regularizer's exponent when a share `done` of the steps is done."""
    share = (done - method.warm_up) / (1 - method.warm_up)
    return method.beta_start + (method.beta_end - method.beta_start) * share
