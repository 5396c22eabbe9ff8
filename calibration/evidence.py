"""The inputs and targets of a unit of calibration, and its error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from fp4dit_onnx.calibration.samples import Array, Samples
from fp4dit_onnx.calibration.simulate import weights_only
from fp4dit_onnx.families.guidance import Guided, led
from fp4dit_onnx.network.blocks import tensors_of
from fp4dit_onnx.network.execution import Execution, host
from fp4dit_onnx.network.placing import replaced
from fp4dit_onnx.spec.state import QuantizedLayer

__all__ = ["FloatUnit", "Objective", "Part", "Parts", "outputs_of"]

NEAREST_PAIRS = 256
"""Pairs on which nearest and trained rounding are compared."""


def outputs_of(
    module: Callable[..., Any],
    call: tuple[tuple[Any, ...], dict[str, Any]],
    which: Sequence[int],
    where: Execution,
) -> list[torch.Tensor]:
    """The results of `module` for a call that have the numbers `which`, in float32.

    In half precision matrices are multiplied in it, and all else is float32: the last bit of a sum of
    what a block receives and what it adds would be as large as what rounding its weights changes.
    """
    args, kwargs = where.exact.cast(call)
    with where.products():
        tensors = tensors_of(module(*args, **kwargs))
    return [tensors[i] for i in which]


@dataclass(frozen=True)
class Objective:
    """The error of a module against its float counterpart on recorded samples.

    Attributes:
        inputs: arguments, from the network quantized so far.
        targets: number of a result of the module -> [N, ...], what it is in the float network; of
            each result that something reads.
        guidance: of the sampler.
        guided: weight of the guided combination's error.
    """

    inputs: Samples
    targets: Mapping[int, Array]
    guidance: Guided
    guided: float

    def errors(self, module: Callable[..., Any], pairs: torch.Tensor) -> torch.Tensor:
        """Mean squares over `pairs` (int64 [P]), each weighted as the loss weights its timestep.

        Returns:
            float32 [R, 2] for twins, a row for each result: of both halves, and of ``u + guidance
            (c - u)``, which is what the sampler sees; float32 [R, 1] without twins.
        """
        index = self.inputs.twins(pairs)
        weight = self.inputs.execution.there(self.inputs.weight[pairs])
        which, where = tuple(self.targets), self.inputs.execution
        outputs = outputs_of(module, self.inputs.take(index), which, where)
        errors = [
            self._errors((output.float() - target.read(index).float()).flatten(1), weight)
            for output, target in zip(outputs, self.targets.values(), strict=True)
        ]
        return torch.stack(errors)

    def _errors(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Of one result's differences [N, D]."""
        if not self.inputs.paired:
            return (weight * rows.square().mean(dim=1)).mean().reshape(1)
        # Gradients add up in the order of these operations: another one is another last bit, and
        # in time other codes.
        unconditional, conditional = self.guidance.halves(rows)
        combined = led(unconditional, conditional, self.guidance.weight)
        halves = (unconditional.square() + conditional.square()).mean(dim=1) / 2
        both = torch.stack([halves, combined.square().mean(dim=1)])  # [2, P]
        return (weight * both).mean(dim=1)

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
        """One number of `errors`, each in its `unit`; results count alike."""
        shares = errors / unit
        if shares.shape[1] == 1:
            return shares.mean()
        return ((shares[:, 0] + self.guided * shares[:, 1]) / (1 + self.guided)).mean()


class Parts(Protocol):
    """Gives the parts of the float network; `network.Network` does."""

    @property
    def execution(self) -> Execution:
        """Where they are run, and in which type."""
        ...

    def materialize(self, name: str, execution: Execution | None = None) -> torch.nn.Module:
        """A copy of the block or other module called `name`, with values, there or where it says."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """Values of a stored tensor, float32, on the host."""
        ...


@dataclass(frozen=True)
class Part:
    """A block or a linear of the float network, with values, in float32.

    Attributes:
        name: torch name in the network.
        holder: has it as its ``part``.
        parts: that it is of.
    """

    name: str
    holder: torch.nn.Module
    parts: Parts

    @classmethod
    def of(cls, name: str, parts: Parts) -> Part:
        """The part called `name`."""
        holder = torch.nn.Module()
        holder.part = parts.materialize(name, parts.execution.exact)
        return cls(name, holder, parts)

    def _path(self, layer: str) -> str:
        return f"part{layer.removeprefix(self.name)}"

    @property
    def module(self) -> torch.nn.Module:
        """The part as it is now."""
        return self.holder.get_submodule("part")

    def linear(self, layer: str) -> torch.nn.Linear:
        """One of its linears, by its name in the network."""
        linear = self.holder.get_submodule(self._path(layer))
        assert isinstance(linear, torch.nn.Linear), layer
        return linear

    def weight(self, layer: str) -> torch.Tensor:
        """Of one of its linears, as it is stored: float32 [N, K] on the host."""
        return host(self.linear(layer).weight)

    def bias(self, layer: str) -> torch.Tensor | None:
        """The same of its bias, [N]; None where it has none."""
        own = self.linear(layer).bias
        return None if own is None else host(own)

    def replaced(
        self, modules: Mapping[str, torch.nn.Module]
    ) -> AbstractContextManager[torch.nn.Module]:
        """While open, other modules are in the places of some of its linears."""
        return replaced(self.holder, {self._path(n): module for n, module in modules.items()})

    def quantized(
        self, layers: Iterable[QuantizedLayer]
    ) -> AbstractContextManager[torch.nn.Module]:
        """While open, some of its linears are quantized, activations in float."""
        return self.replaced({q.name: weights_only(q, self.linear(q.name)) for q in layers})


@dataclass(frozen=True)
class FloatUnit:
    """A part of the float network, and what it should reproduce.

    Attributes:
        part: left as it was.
        objective: its inputs and targets.
    """

    part: Part
    objective: Objective
