"""Rounding to a format's grid in torch, bit for bit `fp4dit_onnx.numbers.numerics`."""

from __future__ import annotations

import torch

from fp4dit_onnx.numbers.formats import FloatFormat
from fp4dit_onnx.numbers.numerics import SMALLEST_AMAX

__all__ = ["binade_step", "expand_groups", "quantize_rows", "round_to_grid", "row_chunks"]

MANTISSA_BITS, BIAS = 23, 127
"""Of float32."""
CHUNK = 1 << 20
"""Elements that are worked on at a time: they stay in a core's cache, and no memory is asked for."""


def row_chunks(values: torch.Tensor, width: int | None = None) -> tuple[torch.Tensor, ...]:
    """`values` [N, ...] in chunks of rows, as many as `CHUNK` elements of rows of `width` make."""
    rows = max(1, CHUNK // max(1, width or values.shape[1]))
    return torch.split(values, rows)


def binade_step(magnitude: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """Distance between the grid integers around `magnitude` (any shape, float32, grid-integer units).

    A power of two, 1 up to the first normal binade: FP4DiT's s(w) in units of the group's scale.
    """
    # The exponent field itself; frexp and ldexp take ten times as long. 0 and subnormals give -127.
    field = magnitude.contiguous().view(torch.int32) >> MANTISSA_BITS
    field = field.sub_(BIAS + fmt.mantissa_bits).clamp_(min=0).add_(BIAS)
    return (field << MANTISSA_BITS).view(torch.float32)


def round_to_grid(t: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """Nearest grid integer of finite `t` (any shape, float32), saturating, ties to even."""
    step = binade_step(t.abs(), fmt)
    return (t / step).round_().mul_(step).clamp_(-fmt.max_integer, fmt.max_integer)


def quantize_rows(x: torch.Tensor, fmt: FloatFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Online per-token quantization: grid integers (float32 [..., K]) and scales [..., 1]."""
    amax = x.abs().amax(dim=-1, keepdim=True)  # of a row that is not finite: NaN or infinity
    finite = torch.isfinite(amax)
    live = finite & (amax >= float(SMALLEST_AMAX))
    # Tensor by tensor: torch divides a number by a tensor as number * reciprocal, rounded twice.
    limit = torch.full_like(amax, fmt.max_integer)
    factor = limit / torch.where(live, amax, 1.0)
    ordinary = x if bool(live.all()) else torch.where(live, x, 0.0)
    q = round_to_grid(ordinary * factor, fmt)
    scale = torch.where(live, amax / limit, 0.0)
    return q, torch.where(finite, scale, torch.nan)


def expand_groups(scale: torch.Tensor, size: int, group_size: int) -> torch.Tensor:
    """Repeat group scales [N, G] to one an element [N, size]."""
    return scale.repeat_interleave(group_size, dim=-1)[..., :size]
