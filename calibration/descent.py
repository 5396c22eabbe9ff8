"""Training what a unit's module holds, on mini-batches of its recorded samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from fp4dit_onnx.calibration.evidence import Objective

__all__ = ["Descent", "Optimizer", "stepped_apart"]


class Optimizer(Protocol):
    """What moves parameters against their gradients."""

    def zero_grad(self) -> None:
        """Before the gradients are computed."""

    def step(self) -> object:
        """Afterwards."""


class _AlreadyStepped:
    """An optimizer whose parameters move while gradients are computed."""

    def zero_grad(self) -> None:
        """Nothing is left of the last ones."""

    def step(self) -> None:
        """Every parameter has moved."""


@contextmanager
def stepped_apart(parameters: Sequence[torch.nn.Parameter], rate: float) -> Iterator[Optimizer]:
    """Adam that moves each parameter as soon as its gradient is there, and lets go of the gradient.

    The bits are those of one Adam for all, which never looks at two parameters at once; gradients of
    all of them are never in memory.
    """
    handles = []
    for parameter in parameters:
        own = torch.optim.Adam([parameter], lr=rate)

        def move(_: torch.Tensor, own: torch.optim.Adam = own) -> None:
            own.step()
            own.zero_grad()

        hook = parameter.register_post_accumulate_grad_hook(move)  # type: ignore[no-untyped-call]
        handles.append(hook)
    try:
        yield _AlreadyStepped()
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Descent:
    """The errors of a module on samples, and steps of an optimizer that make them less.

    Attributes:
        module: the block or linear.
        objective: what it is to reproduce.
        batch: samples per step, both halves of guidance counted.
    """

    module: Callable[..., Any]
    objective: Objective
    batch: int

    @property
    def _pairs(self) -> int:
        return max(1, self.batch // (2 if self.objective.inputs.paired else 1))

    def unit(self) -> torch.Tensor:
        """The module's errors as it is, in which others are measured; see `Objective.errors`."""
        return self.objective.total(self.module, self._pairs * 4).clamp(min=1e-30)

    def error(self, unit: torch.Tensor) -> torch.Tensor:
        """Of the module as it is, on the samples of `unit`; []."""
        return self.objective.loss(self.objective.total(self.module, self._pairs * 4), unit)

    @torch.enable_grad()
    def run(
        self,
        optimizer: Optimizer,
        unit: torch.Tensor,
        iterations: int,
        seed: int,
        on_step: Callable[[float], None],
        *,
        begin: Callable[[int], object] = lambda step: None,
        added: Callable[[], torch.Tensor | None] = lambda: None,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        """Take so many steps.

        Args:
            optimizer: of the parameters.
            unit: of the errors.
            iterations: steps.
            seed: of the mini-batches.
            on_step: called with the error after each step.
            begin: called with the number of a step, before the module runs.
            added: what is added to the error, once the module has run; None for nothing.
            after: called after each step, without gradients.
        """
        random, every = np.random.default_rng(seed), self.objective.inputs.pairs
        count = min(self._pairs, every)
        for step in range(iterations):
            begin(step)
            chosen = torch.from_numpy(random.choice(every, count, replace=False))
            error = self.objective.loss(self.objective.errors(self.module, chosen), unit)
            more = added()
            optimizer.zero_grad()
            (error if more is None else error + more).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                after()
            on_step(float(error.detach()))
