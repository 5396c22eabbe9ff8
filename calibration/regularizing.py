"""Training a unit's float weights towards outputs without outlier channels, before they are quantized.

Nrusimha et al., arXiv 2404.03605: activations are quantized while a model is trained, and the kurtosis
of each linear's output is part of the loss. There a language model is trained from scratch; here a unit
of a trained network for some steps, on its own trajectory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fp4dit_onnx.calibration.draft import Draft, Drafts
from fp4dit_onnx.calibration.stages.stage import Evidence
from fp4dit_onnx.calibration.tuning import TunedLinear, descent_of, rounded
from fp4dit_onnx.network.execution import host

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.stages.regularize import Regularize

__all__ = ["RegularizedLinear", "kurtosis", "regularized"]

EPSILON = 1e-6
"""Added to squared variances, against rows whose values are all equal."""


def kurtosis(y: torch.Tensor) -> torch.Tensor:
    """The mean over rows [..., N] of ``mean((y - mu)^4) / (mean((y - mu)^2)^2 + epsilon)``; [].

    See `numbers.outliers.kurtosis`, which is without the epsilon.
    """
    square = (y - y.mean(dim=-1, keepdim=True)).square()
    found: torch.Tensor = square.square().mean(dim=-1) / (square.mean(dim=-1).square() + EPSILON)
    return found.mean()


class RegularizedLinear(TunedLinear):
    """Notes its output's kurtosis.

    Args:
        draft: as of `TunedLinear`.
        weight: float32 [N, K], where it is trained.
        bias: [N] or None.
    """

    def __init__(self, draft: Draft, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(draft, bias)
        self.weight = torch.nn.Parameter(weight.clone())
        self.kurtosis = weight.new_zeros(())

    def matrix(self) -> torch.Tensor:
        """See `TunedLinear`."""
        return self.weight

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """See `TunedLinear`."""
        y = super().product(x)
        self.kurtosis = kurtosis(y)
        return y


def regularized(drafts: Drafts, method: Regularize, evidence: Evidence) -> Drafts:
    """The drafts with trained weights; with their own where these do not lower the loss.

    The loss is the unit's error in units of nearest rounding's, plus `method.weight` times the mean over
    its linears of their outputs' kurtosis, each in units of what it was.
    """
    unit = evidence.unit
    assert unit is not None
    assert evidence.tried is not None
    part, there = unit.part, unit.part.parts.execution.there
    linears = {
        name: RegularizedLinear(draft, there(draft.weight), part.linear(name).bias)
        for name, draft in drafts.items()
    }
    with part.replaced(rounded(drafts, part, evidence.tried)):
        units = descent_of(unit, method.batch).unit()
    with part.replaced(linears):
        descent = descent_of(unit, method.batch)
        first = descent.error(units) + method.weight
        start = {name: linear.kurtosis for name, linear in linears.items()}
        optimizer = torch.optim.Adam(
            [linear.weight for linear in linears.values()], lr=method.learning_rate
        )

        def tails() -> torch.Tensor:
            return method.weight * _share(linears, start)

        descent.run(
            optimizer, units, method.iterations, evidence.seed, evidence.on_step, added=tails
        )
        last = descent.error(units) + tails().detach()
    if not float(last) < float(first):
        return drafts
    return {
        name: replace(draft, weight=host(linears[name].weight.detach()))
        for name, draft in drafts.items()
    }


def _share(
    linears: Mapping[str, RegularizedLinear], start: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The mean of the linears' kurtosis, each in units of what it was at the start; []."""
    shares = [own.kurtosis / start[name].clamp(min=EPSILON) for name, own in linears.items()]
    return torch.stack(shares).mean()
