"""Scales of two levels, as NVFP4 stores them: an e4m3 number a block, times one factor a tensor.

The factor is a power of two. So float16 and float32 hold the products exactly, a bundle stores them
as it stores other scales, and whether scales have two levels can be seen from their values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fp4dit_onnx import numerics
from fp4dit_onnx.formats import FloatArray, format_by_name

__all__ = ["NVFP4_BLOCK", "rounded", "two_levels"]

NVFP4_BLOCK = 16
"""Inputs that share a scale."""
_E4M3 = format_by_name("e4m3")
_LARGEST = _E4M3.max_integer / _E4M3.unit


def _factor(scale: FloatArray) -> np.float32:
    """The smallest power of two by which no scale exceeds e4m3's largest value, 448."""
    largest = float(scale.max(initial=0))
    if largest == 0:
        return np.float32(1)
    fraction, exponent = np.frexp(largest / _LARGEST)
    return np.float32(2.0 ** (exponent - (fraction == 0.5)))


def _integers(scale: FloatArray, factor: np.float32) -> FloatArray:
    """Scales over the factor, in units of e4m3's smallest step; exact."""
    return (scale / factor) * np.float32(_E4M3.unit)


def rounded(scale: FloatArray) -> FloatArray:
    """The nearest scales that two levels hold; what is not 0 stays so.

    Args:
        scale: float32 of any shape, not negative.
    """
    factor = _factor(scale)
    nearest = numerics.round_to_grid(_integers(scale, factor), _E4M3)
    nearest = np.where(scale > 0, np.maximum(nearest, 1), 0)
    found: FloatArray = (nearest / np.float32(_E4M3.unit) * factor).astype(np.float32)
    return found


def two_levels(scale: FloatArray) -> tuple[npt.NDArray[np.uint8], np.float32] | None:
    """The e4m3 codes (uint8, same shape) and the factor whose products are exactly `scale`.

    None where there are no such codes.
    """
    factor = _factor(scale)
    integers = _integers(scale, factor)
    if not np.array_equal(numerics.round_to_grid(integers, _E4M3), integers):
        return None
    return numerics.encode(integers, _E4M3), factor
