"""Adaptive rounding of weights on floating-point grids: FP4DiT's scale-aware AdaRound.

Each weight may go to its lower or its upper neighbour on the grid; a sigmoid of a trained parameter
blends the two until it is pushed to one of them (FP4DiT section "scale-aware AdaRound", equation 8;
AdaRound, arXiv 2004.10568). On an integer grid every step is the same and the method is the classic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fp4dit_onnx.calibration.grid import binade_step, expand_groups
from fp4dit_onnx.calibration.rounding import scaled_weight
from fp4dit_onnx.numbers.formats import FloatFormat

__all__ = [
    "Neighbours",
    "StoredNeighbours",
    "blended",
    "initial_parameter",
    "neighbours",
    "rectified_sigmoid",
    "regularizer",
]

GAMMA, ZETA = -0.1, 1.1


@dataclass(frozen=True)
class Neighbours:
    """A weight's place on its grid, in grid-integer units; every tensor float32 [N, K].

    Attributes:
        lower: the neighbour below.
        step: distance to the one above, s(w) / scale.
        remainder: where the weight lies between them, in [0, 1].
        scale: group scale of each element, 0 in an all-zero group.
        limit: the format's largest grid integer.
    """

    lower: torch.Tensor
    step: torch.Tensor
    remainder: torch.Tensor
    scale: torch.Tensor
    limit: float

    def blend(self, h: torch.Tensor) -> torch.Tensor:
        """Grid integers between the neighbours: lower at h = 0, upper at h = 1, saturating."""
        return blended(self.lower, self.step, h, self.limit)


@dataclass(frozen=True)
class StoredNeighbours:
    """Neighbours in few bytes, from which they are made as often as they are needed.

    Attributes:
        lower: int8 [N, K], int16 where the format needs it.
        step: likewise.
        scale: of the groups, float32 [N, G].
        group_size: inputs of a row that share a scale.
        limit: the format's largest grid integer.
    """

    lower: torch.Tensor
    step: torch.Tensor
    scale: torch.Tensor
    group_size: int
    limit: float

    @classmethod
    def of(
        cls, place: Neighbours, scale: torch.Tensor, group_size: int, device: torch.device | None
    ) -> StoredNeighbours:
        """The neighbours `place` under group scales [N, G], on a device, None for the host."""
        kind = torch.int8 if place.limit <= torch.iinfo(torch.int8).max else torch.int16
        lower, step = (t.to(kind).to(device) for t in (place.lower, place.step))
        return cls(lower, step, scale.float().to(device), group_size, place.limit)

    def made(self, rows: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The lower ones, their steps and the scale of each element, float32 [R, K]."""
        each = expand_groups(self.scale[rows], self.lower.shape[1], self.group_size)
        return self.lower[rows].float(), self.step[rows].float(), each


def blended(
    lower: torch.Tensor, step: torch.Tensor, h: torch.Tensor, limit: float
) -> torch.Tensor:
    """Lower at h = 0, the one above at h = 1, saturating."""
    return (lower + step * h).clamp(-limit, limit)


def neighbours(
    weight: torch.Tensor, scale: torch.Tensor, fmt: FloatFormat, group_size: int
) -> Neighbours:
    """Neighbours of `weight` [N, K] under group scales [N, G]."""
    limit = fmt.max_integer
    t = scaled_weight(weight, scale, group_size).clamp(-limit, limit)
    step = binade_step(t, fmt)
    lower = torch.floor(t / step) * step
    each = expand_groups(scale.float(), weight.shape[1], group_size)
    return Neighbours(lower, step, (t - lower) / step, each, limit)


def rectified_sigmoid(v: torch.Tensor) -> torch.Tensor:
    """h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def initial_parameter(remainder: torch.Tensor) -> torch.Tensor:
    """V0 with h(V0) = remainder: training starts from the float weight."""
    return -torch.log((ZETA - GAMMA) / (remainder - GAMMA) - 1)


def regularizer(h: torch.Tensor, beta: float) -> torch.Tensor:
    """Sum of 1 - |2h - 1|^beta: zero where every h is 0 or 1."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()
