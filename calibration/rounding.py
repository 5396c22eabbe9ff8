"""Rounding weights to grid integers under given scales."""

from __future__ import annotations

import torch

from fp4dit_onnx.calibration.grid import expand_groups, round_to_grid
from fp4dit_onnx.formats import FloatFormat

__all__ = ["round_to_nearest", "scaled_weight"]


def scaled_weight(weight: torch.Tensor, scale: torch.Tensor, group_size: int) -> torch.Tensor:
    """Weight [N, K] in grid-integer units under group scales [N, G]; a group of scale 0 gives 0."""
    step = expand_groups(scale.float(), weight.shape[1], group_size)
    live = step > 0
    return torch.where(live, weight, 0.0) / torch.where(live, step, 1.0)


def round_to_nearest(
    weight: torch.Tensor, scale: torch.Tensor, fmt: FloatFormat, group_size: int
) -> torch.Tensor:
    """Nearest grid integers, float32 [N, K]."""
    return round_to_grid(scaled_weight(weight, scale, group_size), fmt)
