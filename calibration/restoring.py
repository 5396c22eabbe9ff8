"""Training what rounding took away back into a unit's weights, before they are rounded again.

PTQ1.61, arXiv 2502.13179, section on quantization preprocessing: weights are rounded, a matrix of low
rank is trained on top of them, and the sum is what is quantized in the end. There a whole language model
is trained so on text; here a unit for some steps, on the sampler's own trajectory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fp4dit_onnx.calibration.draft import Draft, Drafts
from fp4dit_onnx.calibration.stages.stage import Evidence
from fp4dit_onnx.calibration.tuning import TunedLinear, descent_of, rounded
from fp4dit_onnx.network.execution import host

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.stages.restore import Restore

__all__ = ["RestoredLinear", "restored"]


class RestoredLinear(TunedLinear):
    """A rounded weight, and a trained one of low rank beside it, which is 0 at first.

    Args:
        draft: as of `TunedLinear`.
        rounded: float32 [N, K], which stays.
        rank: of the other, the smaller side of the weight at most.
        bias: [N] or None.
        random: of the first values of one of its two matrices.
    """

    def __init__(
        self,
        draft: Draft,
        rounded: torch.Tensor,
        rank: int,
        bias: torch.Tensor | None,
        random: torch.Generator,
    ) -> None:
        super().__init__(draft, bias)
        n, k = rounded.shape
        size = min(rank, n, k)
        self.rounded = rounded
        down = torch.randn(size, k, generator=random).to(rounded) / k**0.5
        self.down = torch.nn.Parameter(down)
        self.up = torch.nn.Parameter(rounded.new_zeros(n, size))

    def matrix(self) -> torch.Tensor:
        """See `TunedLinear`."""
        return self.rounded + self.up @ self.down


def restored(drafts: Drafts, method: Restore, evidence: Evidence) -> Drafts:
    """The drafts with trained weights; with their own unless the others are better once rounded.

    Both are rounded as the method rounds: a gain under another rounding need not be one under this.
    """
    unit = evidence.unit
    assert unit is not None
    part, there = unit.part, unit.part.parts.execution.there
    random = torch.Generator().manual_seed(evidence.seed)
    first = rounded(drafts, part, evidence.rounded)
    with part.replaced(first):
        units = descent_of(unit, method.batch).unit()
    linears = {
        name: RestoredLinear(
            draft, there(first[name].weight), method.rank, part.linear(name).bias, random
        )
        for name, draft in drafts.items()
    }
    with part.replaced(linears):
        matrices = [matrix for linear in linears.values() for matrix in (linear.down, linear.up)]
        optimizer = torch.optim.Adam(matrices, lr=method.learning_rate)
        descent_of(unit, method.batch).run(
            optimizer, units, method.iterations, evidence.seed, evidence.on_step
        )
    found = {
        name: replace(draft, weight=host(linears[name].matrix().detach()))
        for name, draft in drafts.items()
    }
    with part.replaced(rounded(found, part, evidence.rounded)):
        error = descent_of(unit, method.batch).error(units)
    return found if float(error) < 1 else drafts
