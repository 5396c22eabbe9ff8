"""Training what a unit's module holds, on mini-batches of its recorded samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fp4dit_onnx.calibration.evidence import Objective

__all__ = ["Descent"]


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
        optimizer: torch.optim.Optimizer,
        unit: torch.Tensor,
        iterations: int,
        seed: int,
        on_step: Callable[[float], None],
        *,
        added: Callable[[int], torch.Tensor | None] = lambda step: None,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        """Take so many steps.

        Args:
            optimizer: of the parameters.
            unit: of the errors.
            iterations: steps.
            seed: of the mini-batches.
            on_step: called with the error after each step.
            added: what is added to the error at a step, once the module has run; None for nothing.
            after: called after each step, without gradients.
        """
        random, every = np.random.default_rng(seed), self.objective.inputs.pairs
        count = min(self._pairs, every)
        for step in range(iterations):
            chosen = torch.from_numpy(random.choice(every, count, replace=False))
            error = self.objective.loss(self.objective.errors(self.module, chosen), unit)
            more = added(step)
            optimizer.zero_grad()
            (error if more is None else error + more).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                after()
            on_step(float(error.detach()))
