"""Scales of groups: found on the float weight, rounded as they are stored."""

from __future__ import annotations

import torch

from fp4dit_onnx.calibration.grid import row_chunks
from fp4dit_onnx.calibration.rounding import round_to_nearest, scaled_weight
from fp4dit_onnx.numbers.numerics import SMALLEST_AMAX, group_count
from fp4dit_onnx.numbers.scale_formats import Rounder, stored
from fp4dit_onnx.spec.spec import LayerSpec

__all__ = ["absmax_scale", "group_absmax", "mse_scale"]


def _grouped(values: torch.Tensor, group_size: int) -> torch.Tensor:
    """[N, K] -> [N, G, group], zeros where the last group is short."""
    n, k = values.shape
    groups = group_count(k, group_size)
    missing = groups * group_size - k
    padded = torch.nn.functional.pad(values, (0, missing)) if missing else values
    return padded.reshape(n, groups, group_size)


def group_absmax(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Largest magnitude of each group: float32 [N, G] of a weight [N, K]; the last may be short."""
    return torch.cat([_grouped(w, group_size).abs().amax(dim=-1) for w in row_chunks(weight)])


def _full_scale(weight: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    """Scales that map each group's largest magnitude to the grid's largest; float32 [N, G]."""
    amax = group_absmax(weight, spec.group_size)
    # Tensor by tensor: torch divides a tensor by a number as a product with its reciprocal.
    limit = torch.full_like(amax, spec.weight_format.max_integer)
    return torch.where(amax >= float(SMALLEST_AMAX), amax / limit, 0.0)


def _rounder(full: torch.Tensor, spec: LayerSpec) -> Rounder:
    return spec.scale_format.fit(full.numpy(), spec.weight_format)


def _stored(scale: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    return torch.from_numpy(stored(scale.numpy(), spec.scale_format))


def absmax_scale(weight: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    """Scale that maps each group's largest magnitude to the format's largest (FP4DiT, ranges).

    Returns:
        float16 or float32 [N, G], 0 for an all-zero group.
    """
    full = _full_scale(weight, spec)
    return _stored(torch.from_numpy(_rounder(full, spec)(full.numpy(), slice(None))), spec)


def mse_scale(
    weight: torch.Tensor, spec: LayerSpec, lowest: float, candidates: int
) -> torch.Tensor:
    """Scale of each group with the least squared error of nearest rounding, from a grid.

    Args:
        weight: float32 [N, K].
        spec: of the layer.
        lowest: the smallest candidate, as a share of the absmax scale.
        candidates: how many there are, evenly from `lowest` to 1.

    Returns:
        float16 or float32 [N, G], 0 for an all-zero group.
    """
    full = _full_scale(weight, spec)
    rounder = _rounder(full, spec)
    full = torch.from_numpy(rounder(full.numpy(), slice(None)))
    shares = torch.linspace(lowest, 1, candidates).tolist()
    best, start = [], 0
    for rows, most in zip(row_chunks(weight), row_chunks(full, weight.shape[1]), strict=True):
        at = slice(start, start + len(rows))
        tried = (torch.from_numpy(rounder((most * s).numpy(), at)) for s in shares)
        best.append(_least_error(rows, most, [*tried], spec))
        start = at.stop
    return _stored(torch.cat(best), spec)


def _least_error(
    weight: torch.Tensor, full: torch.Tensor, scales: list[torch.Tensor], spec: LayerSpec
) -> torch.Tensor:
    """The scale of each group, among `scales` [N, G] each, with the least squared error; float32."""
    size = spec.group_size
    best, least = full, torch.full(full.shape, torch.inf)
    for scale in scales:
        exact = scaled_weight(weight, scale, size)
        error = round_to_nearest(weight, scale, spec.weight_format, size) - exact
        squares = _grouped(error.square(), size).sum(dim=-1) * scale.square()
        best = torch.where(squares < least, scale, best)
        least = torch.minimum(squares, least)
    return torch.where(full > 0, best, 0.0)
