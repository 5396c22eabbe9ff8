"""Layer norms in numpy: the definition, which C++ must match bit for bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers.formats import FloatArray
from fp4dit_onnx.numbers.numerics import fma

__all__ = ["layer_norm", "layer_norm_rounding_bound"]

NORM_LANES = 64
"""Partial sums of a row."""
UNIT_ROUNDOFF = 2.0**-24


def layer_norm(x: FloatArray, gain: FloatArray, shift: FloatArray, epsilon: float) -> FloatArray:
    """Rows normalized, times `gain`, plus `shift`; each step rounded to float32.

    With sums in `NORM_LANES` partial sums, ascending, folded in halves: ``d = x - sum of x / K``,
    ``r = 1 / sqrt(sum of d^2 / K + epsilon)``, the squares added by fma, and
    ``fma(d * r, gain, shift)``.

    Args:
        x: float32 [..., K].
        gain: float32, broadcast to x.
        shift: likewise.
        epsilon: as float32.
    """
    size = np.float32(x.shape[-1])
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        off = x - _sum(x, np.ones_like(x)) / size
        factor = np.float32(1) / np.sqrt(_sum(off, off) / size + np.float32(epsilon))
        return fma(off * factor, gain, shift)


def _sum(a: FloatArray, b: FloatArray) -> FloatArray:
    """Sums [..., 1] of the products of two rows."""
    pads = [(0, 0)] * (a.ndim - 1) + [(0, -a.shape[-1] % NORM_LANES)]
    left, right = np.pad(a, pads), np.pad(b, pads)
    lanes = np.zeros((*a.shape[:-1], NORM_LANES), np.float32)
    for start in range(0, left.shape[-1], NORM_LANES):
        part = (..., slice(start, start + NORM_LANES))
        lanes = fma(left[part], right[part], lanes)
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes


def layer_norm_rounding_bound(
    x: FloatArray, gain: FloatArray, shift: FloatArray, epsilon: float
) -> npt.NDArray[np.float64]:
    """How far two evaluators' `layer_norm` may lie apart, as x.

    With n = K + 8 roundings on a path, a mean is off by at most ``n u`` of the largest magnitude m, so
    ``x - mean`` by that and a rounding; the variance by what this makes of it, ``2 m n u sqrt(var)``
    at most, and n roundings. Both evaluators, hence the factor of two.
    """
    wide = x.astype(np.float64)
    roundings = 2 * (x.shape[-1] + 8) * UNIT_ROUNDOFF
    with np.errstate(all="ignore"):
        most = np.abs(wide).max(-1, keepdims=True)
        variance = wide.var(-1, keepdims=True) + epsilon
        factor = 1 / np.sqrt(variance)
        unit = np.abs(wide - wide.mean(-1, keepdims=True)) * factor
        apart = roundings * most * factor
        off = apart + unit * (apart + roundings)
        bound: npt.NDArray[np.float64] = np.abs(gain) * off + 4 * UNIT_ROUNDOFF * (
            np.abs(gain) * unit + np.abs(shift)
        )
    return bound
