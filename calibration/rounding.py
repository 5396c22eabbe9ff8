"""Rounding weights to grid integers under given scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.grid import expand_groups, round_to_grid, row_chunks
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import ratio_db
from fp4dit_onnx.numbers.formats import FloatFormat

__all__ = ["on_grid", "packed", "round_to_nearest", "rounded_to_nearest", "scaled_weight"]


def scaled_weight(weight: torch.Tensor, scale: torch.Tensor, group_size: int) -> torch.Tensor:
    """Weight [N, K] in grid-integer units under group scales [N, G]; a group of scale 0 gives 0."""
    unit = scale.float()
    live = unit > 0
    if not bool(live.all()):
        unit = torch.where(live, unit, 1.0)
        weight = torch.where(expand_groups(live, weight.shape[1], group_size), weight, 0.0)
    return weight / expand_groups(unit, weight.shape[1], group_size)


def on_grid(exact: torch.Tensor, fmt: FloatFormat, wide: int | None = None) -> torch.Tensor:
    """The nearest grid integers of a weight [N, K] in their units; see `TensorSpec.wide`.

    Of those inputs that have a sign alone, 0 has that of 1.
    """
    nearest = round_to_grid(exact, fmt)
    if wide is not None:
        nearest[:, wide:] = torch.where(exact[:, wide:] < 0, -1.0, 1.0)
    return nearest


def round_to_nearest(
    weight: torch.Tensor,
    scale: torch.Tensor,
    fmt: FloatFormat,
    group_size: int,
    wide: int | None = None,
) -> torch.Tensor:
    """Nearest grid integers, float32 [N, K]; see `on_grid`."""
    return on_grid(scaled_weight(weight, scale, group_size), fmt, wide)


def packed(
    integers: torch.Tensor, fmt: FloatFormat, wide: int | None = None
) -> npt.NDArray[np.uint8]:
    """Packed codes [N, B] of grid integers, float32 [N, K]; see `numerics.pack`."""
    return numerics.pack(numerics.encode(integers.numpy(), fmt), fmt.storage_bits, wide)


def rounded_to_nearest(draft: Draft) -> Draft:
    """The draft with the codes nearest under its scales, a few rows at a time, and their SQNR."""
    assert draft.scale is not None
    fmt, size, k = draft.spec.weight_format, draft.spec.group_size, draft.weight.shape[1]
    wide = draft.spec.wide
    codes, signal, noise = [], 0.0, 0.0
    for rows, steps in zip(row_chunks(draft.weight), row_chunks(draft.scale, k), strict=True):
        integers = round_to_nearest(rows, steps, fmt, size, wide)
        codes.append(packed(integers, fmt, wide))
        restored = integers.mul_(expand_groups(steps.float(), k, size))
        signal += float(rows.square().sum(dtype=torch.float64))
        noise += float(restored.sub_(rows).square_().sum(dtype=torch.float64))
    joined = np.concatenate(codes) if codes else np.zeros((0, 0), np.uint8)
    return replace(draft, codes=joined, weight_sqnr_db=ratio_db(signal, noise))
