"""Scales of groups: found on the float weight, rounded as they are stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from fp4dit_onnx.calibration.grid import row_chunks
from fp4dit_onnx.calibration.rounding import on_grid, scaled_weight
from fp4dit_onnx.numbers.numerics import SMALLEST_AMAX, group_count
from fp4dit_onnx.numbers.scale_formats import (
    Rounder,
    channel_rounded,
    largest_multiplier,
    stored,
)
from fp4dit_onnx.spec.spec import LayerSpec

__all__ = [
    "absmax_scale",
    "group_absmax",
    "limit_scale",
    "mse_scale",
    "spread_distance",
    "weighted_scale",
]

SQUARES = (2, False)
"""A kind of error, see `_least_error`."""
SHARES = (1.5, 1.25, 1.1, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
"""Of the absmax scale, that `weighted_scale` tries."""
CHANNEL_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Of the channel's largest absmax scale over the largest multiplier."""
MULTIPLIERS_NEAR = (-3, 3)
"""Range around the multiplier nearest to the absmax scale."""


def _grouped(values: torch.Tensor, group_size: int) -> torch.Tensor:
    """[N, K] -> [N, G, group], zeros where the last group is short; a group is no longer than a row."""
    n, k = values.shape
    group_size = min(group_size, k)
    groups = group_count(k, group_size)
    missing = groups * group_size - k
    padded = torch.nn.functional.pad(values, (0, missing)) if missing else values
    return padded.reshape(n, groups, group_size)


def group_absmax(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Largest magnitude of each group: float32 [N, G] of a weight [N, K]; the last may be short."""
    return torch.cat([_grouped(w, group_size).abs().amax(dim=-1) for w in row_chunks(weight)])


def spread_distance(weight: torch.Tensor, spec: LayerSpec, quantile: float) -> float:
    """How far a weight's spread is from that of its format's grid: magnitude of a logarithm.

    A grid's is its largest over its smallest magnitude; the weight's the median over groups of the
    largest over the `quantile` of the magnitudes.

    Args:
        weight: float32 [N, K].
        spec: of the layer.
        quantile: in (0, 1).
    """
    size = min(spec.group_size, weight.shape[1])
    whole = weight[:, : weight.shape[1] // size * size]  # a short last group says little
    ordered = _grouped(whole.abs(), size).sort(dim=-1).values
    small, large = ordered[..., int(quantile * size)], ordered[..., -1]
    live = small > 0
    if not bool(live.any()):
        return 0.0
    spread = torch.log(large[live] / small[live]).median()
    return abs(float(spread) - math.log(spec.weight_format.max_integer))


def _full_scale(weight: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    """Scales that map each group's largest magnitude to the grid's largest; float32 [N, G].

    Of groups that have signs alone, the mean magnitude, whose squared error is least.
    """
    amax = group_absmax(weight, spec.group_size)
    # Tensor by tensor: torch divides a tensor by a number as a product with its reciprocal.
    limit = torch.full_like(amax, spec.weight_format.max_integer)
    full = amax / limit
    if spec.wide is not None:
        full[:, spec.wide // spec.group_size :] = _group_mean(
            weight[:, spec.wide :], spec.group_size
        )
    return torch.where(amax >= float(SMALLEST_AMAX), full, 0.0)


def _group_mean(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Mean magnitude of each group, float32 [N, G]; the last may be short."""
    k = weight.shape[1]
    sizes = torch.tensor([min(group_size, k - at) for at in range(0, k, group_size)])
    sums = [_grouped(w, group_size).abs().sum(dim=-1) for w in row_chunks(weight)]
    return torch.cat(sums) / sizes


def _rounder(full: torch.Tensor, spec: LayerSpec) -> Rounder:
    return spec.scale_format.fit(full.numpy(), spec.weight_format)


def as_stored(scale: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    """Scales float32 [N, G] that a rounder made, in the type in which they are stored."""
    return torch.from_numpy(stored(scale.numpy(), spec.scale_format))


def shared_scales(
    weight: torch.Tensor, spec: LayerSpec, shares: Sequence[float]
) -> Iterator[torch.Tensor]:
    """Scales under which a share of each group's largest magnitude becomes the grid's largest.

    Returns:
        Float32 [N, G] for each of `shares`, rounded as the scale format rounds.
    """
    full = _full_scale(weight, spec)
    rounder = _rounder(full * max(*shares, 1.0), spec)
    return (torch.from_numpy(rounder((full * s).numpy(), slice(None))) for s in shares)


def absmax_scale(weight: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    """Scale that maps each group's largest magnitude to the format's largest (FP4DiT, ranges).

    Returns:
        float16 or float32 [N, G], 0 for an all-zero group.
    """
    full = _full_scale(weight, spec)
    return as_stored(torch.from_numpy(_rounder(full, spec)(full.numpy(), slice(None))), spec)


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
    return _best_share(weight, full, rounder, torch.linspace(lowest, 1, candidates).tolist(), spec)


def _best_share(
    weight: torch.Tensor,
    full: torch.Tensor,
    rounder: Rounder,
    shares: Sequence[float],
    spec: LayerSpec,
    kind: tuple[int, bool] = SQUARES,
) -> torch.Tensor:
    """Of scales that are `shares` of `full` [N, G] each group's of the least error, as stored."""
    best, start = [], 0
    for rows, most in zip(row_chunks(weight), row_chunks(full, weight.shape[1]), strict=True):
        at = slice(start, start + len(rows))
        tried = (torch.from_numpy(rounder((most * s).numpy(), at)) for s in shares)
        best.append(_least_error(rows, most, tried, spec, kind=kind)[0])
        start = at.stop
    return as_stored(torch.cat(best), spec)


def _least_error(
    weight: torch.Tensor,
    full: torch.Tensor,
    scales: Iterable[torch.Tensor],
    spec: LayerSpec,
    counts: torch.Tensor | None = None,
    kind: tuple[int, bool] = SQUARES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale of each group, among `scales` [N, G] each, with the least error, and that.

    The first of equals is taken.

    Args:
        weight: float32 [N, K].
        full: absmax scales; a group whose is 0 keeps 0.
        scales: candidates, float32 [N, G] each.
        spec: of the layer.
        counts: of each input's error, float32 [K]; None for all alike.
        kind: of error: the power of each element's, and whether the largest counts in place of the
            sum.
    """
    size = spec.group_size
    power, largest = kind
    best, least = full, torch.full(full.shape, torch.inf)
    for scale in scales:
        exact = scaled_weight(weight, scale, size)
        error = on_grid(exact, spec.weight_format, spec.wide).sub_(exact).abs_().pow_(power)
        if counts is not None:
            error *= counts
        grouped = _grouped(error, size)
        found = (grouped.amax(dim=-1) if largest else grouped.sum(dim=-1)) * scale.pow(power)
        best = torch.where(found < least, scale, best)
        least = torch.minimum(found, least)
    live = full > 0
    return torch.where(live, best, 0.0), torch.where(live, least, 0.0)


def limit_scale(weight: torch.Tensor, spec: LayerSpec, kind: tuple[int, bool]) -> torch.Tensor:
    """Scale that maps each group's largest magnitude to the grid's largest, or to a lesser limit.

    The one of the least error is taken (four over six, arXiv 2512.02010), the largest of equals.

    Args:
        weight: float32 [N, K].
        spec: of the layer; its format has the limits.
        kind: of error, see `_least_error`.

    Returns:
        float16 or float32 [N, G], 0 for an all-zero group.
    """
    fmt = spec.weight_format
    full = _full_scale(weight, spec)
    shares = (1.0, *(fmt.max_integer / limit for limit in fmt.lesser_limits))
    rounder = spec.scale_format.fit_larger(full.numpy(), fmt, max(shares))
    return _best_share(weight, full, rounder, shares, spec, kind)


def weighted_scale(weight: torch.Tensor, spec: LayerSpec, counts: torch.Tensor) -> torch.Tensor:
    """Scale of each group with the least squared error, each input's error counted as `counts` says.

    Of scales that are multipliers times one float per channel, that float is searched as well.

    Args:
        weight: float32 [N, K].
        spec: of the layer.
        counts: float32 [K], not negative.

    Returns:
        float16 or float32 [N, G], 0 for an all-zero group.
    """
    full = _full_scale(weight, spec)
    rounder = _rounder(full * max(SHARES), spec)
    best, start = [], 0
    for rows, most in zip(row_chunks(weight), row_chunks(full, weight.shape[1]), strict=True):
        at = slice(start, start + len(rows))
        if spec.scale_format.multiplied:
            best.append(_search_multipliers(rows, most, spec, counts))
        else:
            tried = (torch.from_numpy(rounder((most * s).numpy(), at)) for s in SHARES)
            best.append(_least_error(rows, most, tried, spec, counts)[0])
        start = at.stop
    return as_stored(torch.cat(best), spec)


def _search_multipliers(
    weight: torch.Tensor,
    full: torch.Tensor,
    spec: LayerSpec,
    counts: torch.Tensor,
) -> torch.Tensor:
    """Multipliers times a channel's float, both searched: scales float32 [N, G]."""
    most = largest_multiplier(spec.weight_format)
    top = full.amax(dim=1, keepdim=True)
    best, least = full, torch.full((len(full), 1), torch.inf)
    for share in CHANNEL_SHARES:
        channel = torch.from_numpy(channel_rounded((top * share / most).numpy()))
        unit = torch.where(channel > 0, channel, 1.0)
        usual = (full / unit).round_()
        near = range(*MULTIPLIERS_NEAR) if most > 1 else (0,)
        tried = ((usual + d).clamp_(1, most) * channel for d in near)
        scale, error = _least_error(weight, full, tried, spec, counts)
        total = error.sum(dim=1, keepdim=True)
        best = torch.where(total < least, scale, best)
        least = torch.minimum(total, least)
    return best
