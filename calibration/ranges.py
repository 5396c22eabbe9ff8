"""Weight ranges: the scale of each group of input channels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fp4dit_onnx import block_scales
from fp4dit_onnx.calibration.rounding import round_to_nearest, scaled_weight
from fp4dit_onnx.formats import FloatFormat
from fp4dit_onnx.numerics import SMALLEST_AMAX, group_count

__all__ = [
    "absmax_scale",
    "group_absmax",
    "group_scale",
    "mse_scale",
    "nvfp4_scale",
    "row_chunks",
    "storable",
]

_FLOAT16_NORMAL = (2.0**-14, 65504.0)
MSE_STEPS = 31
"""Candidates of the search, from `MSE_LOWEST` of the absmax range to all of it, evenly."""
MSE_LOWEST = 0.7


CHUNK = 1 << 20
"""Elements that are worked on at a time: they stay in a core's cache, and no memory is asked for."""


def row_chunks(values: torch.Tensor, width: int | None = None) -> tuple[torch.Tensor, ...]:
    """`values` [N, ...] in chunks of rows, as many as `CHUNK` elements of rows of `width` make."""
    rows = max(1, CHUNK // max(1, width or values.shape[1]))
    return torch.split(values, rows)


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


def storable(scale: torch.Tensor) -> torch.Tensor:
    """Scales as they are stored: float16 if all fit its normal range, else float32.

    float16 costs 16/128 bits a weight where float32 costs 32/128; the codes are chosen under the
    rounded scale, so that only its own 2^-11 is lost.
    """
    live = scale[scale > 0]
    low, high = _FLOAT16_NORMAL
    fits = bool(((live >= low) & (live <= high)).all())
    return scale.to(torch.float16 if fits else torch.float32)


def absmax_scale(weight: torch.Tensor, fmt: FloatFormat, group_size: int) -> torch.Tensor:
    """Scale that maps each group's largest magnitude to the format's largest (FP4DiT, ranges).

    Returns:
        float16 or float32 [N, G], 0 for an all-zero group.
    """
    amax = group_absmax(weight, group_size)
    limit = torch.full_like(amax, fmt.max_integer)
    return storable(torch.where(amax >= float(SMALLEST_AMAX), amax / limit, 0.0))


def mse_scale(weight: torch.Tensor, fmt: FloatFormat, group_size: int) -> torch.Tensor:
    """Scale of each group with the smallest squared error of nearest rounding, from a grid.

    Returns:
        float16 or float32 [N, G], 0 for an all-zero group.
    """
    full = absmax_scale(weight, fmt, group_size)
    pairs = zip(row_chunks(weight), row_chunks(full, weight.shape[1]), strict=True)
    return storable(torch.cat([_best_scale(w, s, fmt, group_size) for w, s in pairs]))


def _best_scale(
    weight: torch.Tensor, full: torch.Tensor, fmt: FloatFormat, group_size: int
) -> torch.Tensor:
    """The search of `mse_scale` from the absmax scales `full` [N, G]; float32."""
    best, least = full.float(), torch.full(full.shape, torch.inf)
    for share in torch.linspace(MSE_LOWEST, 1, MSE_STEPS).tolist():
        scale = (full.float() * share).to(full.dtype).float()
        exact = scaled_weight(weight, scale, group_size)
        error = round_to_nearest(weight, scale, fmt, group_size) - exact
        squares = _grouped(error.square(), group_size).sum(dim=-1) * scale.square()
        best = torch.where(squares < least, scale, best)
        least = torch.minimum(squares, least)
    return torch.where(full > 0, best, 0.0)


def nvfp4_scale(weight: torch.Tensor, fmt: FloatFormat, group_size: int) -> torch.Tensor:
    """The absmax scales, rounded to what `block_scales` holds: e4m3 times one factor.

    Returns:
        float16 or float32 [N, G], 0 for an all-zero group.
    """
    full = absmax_scale(weight, fmt, group_size).float()
    return storable(torch.from_numpy(block_scales.rounded(full.numpy())))


_SCALES: dict[str, Callable[[torch.Tensor, FloatFormat, int], torch.Tensor]] = {
    "absmax": absmax_scale,
    "mse": mse_scale,
    "nvfp4": nvfp4_scale,
}


def group_scale(
    weight: torch.Tensor, fmt: FloatFormat, group_size: int, rule: str
) -> torch.Tensor:
    """Scales [N, G] of a weight [N, K] by the `rule`, one of `methods.RANGES`."""
    return _SCALES[rule](weight, fmt, group_size)
