"""Rounding to a format's grid in torch, bit for bit `fp4dit_onnx.numerics`."""

from __future__ import annotations

import torch

from fp4dit_onnx.formats import FloatFormat
from fp4dit_onnx.numerics import SMALLEST_AMAX

__all__ = ["binade_step", "expand_groups", "quantize_rows", "round_to_grid"]


def binade_step(magnitude: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """Distance between the grid integers around `magnitude` (any shape, float32, grid-integer units).

    A power of two, 1 up to the first normal binade: FP4DiT's s(w) in units of the group's scale.
    """
    exponent = torch.frexp(magnitude).exponent - 1  # magnitude in [2^exponent, 2^(exponent + 1))
    return torch.ldexp(torch.ones_like(magnitude), (exponent - fmt.mantissa_bits).clamp(min=0))


def round_to_grid(t: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """Nearest grid integer of finite `t` (any shape, float32), saturating, ties to even."""
    step = binade_step(t.abs(), fmt)
    rounded = torch.round(t / step) * step
    return rounded.clamp(-fmt.max_integer, fmt.max_integer)


def quantize_rows(x: torch.Tensor, fmt: FloatFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Online per-token quantization: grid integers (float32 [..., K]) and scales [..., 1]."""
    finite = torch.isfinite(x).all(dim=-1, keepdim=True)
    amax = torch.where(finite, x, 0.0).abs().amax(dim=-1, keepdim=True)
    live = amax >= float(SMALLEST_AMAX)
    # Tensor by tensor: torch divides a number by a tensor as number * reciprocal, rounded twice.
    limit = torch.full_like(amax, fmt.max_integer)
    factor = limit / torch.where(live, amax, 1.0)
    q = round_to_grid(torch.where(live, x, 0.0) * factor, fmt)
    scale = torch.where(live, amax / limit, 0.0)
    return q, torch.where(finite, scale, torch.nan)


def expand_groups(scale: torch.Tensor, size: int, group_size: int) -> torch.Tensor:
    """Repeat group scales [N, G] to one an element [N, size]."""
    return scale.repeat_interleave(group_size, dim=-1)[..., :size]
