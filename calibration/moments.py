"""Second moments of what a unit's linears receive: all that GPTQ needs of the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fp4dit_onnx.calibration.evidence import FloatUnit
from fp4dit_onnx.errors import UsageError

__all__ = ["second_moments"]


@dataclass
class _Sums:
    """Running sums of one call after another.

    Attributes:
        guidance: of the sampler.
        guided: weight of the guided combination beside the two halves.
        found: layer -> float64 [K, K].
    """

    guidance: float
    guided: float
    found: dict[str, torch.Tensor] = field(default_factory=dict)
    _call: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def start(self, weight: torch.Tensor, *, paired: bool) -> None:
        """A call begins, of samples with these weights: float32 [P], twins behind each other."""
        self._weight, self._paired = weight, paired
        self._call.clear()

    def add(self, name: str, x: torch.Tensor) -> None:
        """What a layer receives, [B, ..., K]; layers that read one tensor share the product."""
        if id(x) not in self._call:
            self._call[id(x)] = (x, self._moments(x))  # x is kept, so that its id stays its own
        moments = self._call[id(x)][1].double()
        self.found[name] = self.found[name] + moments if name in self.found else moments

    def _moments(self, x: torch.Tensor) -> torch.Tensor:
        samples = len(self._weight) * (2 if self._paired else 1)
        if x.shape[0] != samples:  # no batch: a table of positions, the same for all
            return _gram(x[None], self._weight.sum()[None])
        if not self._paired:
            return _gram(x, self._weight)
        unconditional, conditional = x.chunk(2)
        halves = _gram(unconditional, self._weight) + _gram(conditional, self._weight)
        combined = unconditional + self.guidance * (conditional - unconditional)
        guided = self.guided * _gram(combined, self._weight)
        return (halves / 2 + guided) / (1 + self.guided)


def _gram(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sum over samples of weight [P] times the mean of ``x x^T`` over a sample's rows [P, ..., K]."""
    rows = x.reshape(len(x), -1, x.shape[-1])  # [P, R, K]
    scaled = rows * (weight / rows.shape[1]).sqrt()[:, None, None]
    flat = scaled.reshape(-1, x.shape[-1])
    return flat.T @ flat


@torch.no_grad()
def second_moments(unit: FloatUnit, layers: Iterable[str]) -> Mapping[str, torch.Tensor]:
    """``E[x x^T]`` of the inputs of each layer, float64 [K, K], while the float unit runs.

    Samples count as in the unit's objective: by the importance of their timestep, and the guided
    combination ``u + guidance (c - u)`` beside the two halves.

    Raises:
        UsageError: an input holds NaN or infinity.
    """
    objective, names = unit.objective, tuple(layers)
    inputs = objective.inputs
    sums = _Sums(objective.guidance, objective.guided)

    def hook(name: str) -> Any:
        return lambda _, arguments: sums.add(name, arguments[0].detach())

    handles = [unit.linear(n).register_forward_pre_hook(hook(n)) for n in names]
    try:
        pairs = torch.arange(inputs.pairs)
        for part in torch.split(pairs, max(1, unit.chunk // 2)):
            sums.start(inputs.weight[part], paired=inputs.paired)
            args, kwargs = inputs.take(inputs.twins(part))
            unit.module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    for name in names:
        if name not in sums.found:
            raise UsageError(
                f"layer {name}: was never run while calibrating: exclude it by a rule"
            )
        if not bool(torch.isfinite(sums.found[name]).all()):
            raise UsageError(
                f"layer {name}: its inputs hold NaN or infinity; check the checkpoint"
            )
    return {name: moments / inputs.pairs for name, moments in sums.found.items()}
