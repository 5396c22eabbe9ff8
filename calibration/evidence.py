"""What a unit of calibration receives and should give, and how far it is from that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fp4dit_onnx.calibration.samples import Array, Samples
from fp4dit_onnx.calibration.simulate import weights_only
from fp4dit_onnx.calibration.walk import replaced
from fp4dit_onnx.spec.state import QuantizedLayer

__all__ = ["FloatUnit", "Objective", "output_of"]

NEAREST_PAIRS = 256
"""Pairs on which nearest and trained rounding are compared."""
CHOICE_PAIRS = 32
"""Pairs of samples on which formats are compared."""


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


@dataclass(frozen=True)
class FloatUnit:
    """A block or a linear of the float network, and what it should reproduce.

    Attributes:
        network: the float transformer.
        name: torch name of the unit in it.
        objective: its inputs and targets.
        chunk: samples that may be run at a time.
    """

    network: torch.nn.Module
    name: str
    objective: Objective
    chunk: int

    @property
    def module(self) -> torch.nn.Module:
        """The unit as it is in the network now."""
        return self.network.get_submodule(self.name)

    def bias(self, layer: str) -> torch.Tensor | None:
        """The bias of one of its linears."""
        linear = self.network.get_submodule(layer)
        assert isinstance(linear, torch.nn.Linear), layer
        return linear.bias

    def error(self, *layers: QuantizedLayer) -> torch.Tensor:
        """`Objective.total` with some of its linears quantized, activations in float."""
        modules: dict[str, torch.nn.Module] = {
            layer.name: weights_only(layer, self.bias(layer.name)) for layer in layers
        }
        with replaced(self.network, modules):
            return self.objective.total(self.module, self.chunk // 2 or 1, CHOICE_PAIRS)
