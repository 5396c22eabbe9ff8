"""Weight ranges: the scale of each group of input channels."""

from __future__ import annotations

import torch

from fp4dit_onnx.formats import FloatFormat
from fp4dit_onnx.numerics import SMALLEST_AMAX, group_count

__all__ = ["absmax_scale", "group_absmax", "storable"]

_FLOAT16_NORMAL = (2.0**-14, 65504.0)


def group_absmax(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Largest magnitude of each group: float32 [N, G] of a weight [N, K]; the last may be short."""
    n, k = weight.shape
    groups = group_count(k, group_size)
    padded = torch.nn.functional.pad(weight, (0, groups * group_size - k))
    return padded.reshape(n, groups, group_size).abs().amax(dim=-1)  # [N, G, group] -> [N, G]


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
