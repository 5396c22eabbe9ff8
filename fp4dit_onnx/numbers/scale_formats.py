"""Scale formats: what the scale of a group may be, and how it is rounded to that.

A scale is rounded *before* codes are chosen, so that codes and scales fit each other. Whatever the
format, a bundle holds the products as float16 where that is exact, else as float32, so no operator
has to know the format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FloatArray, format_by_name

__all__ = [
    "DEFAULT_SCALE",
    "NVFP4_BLOCK",
    "SCALE_FORMATS",
    "ScaleFormat",
    "scale_format_by_name",
    "stored",
    "two_levels",
]

Rounder = Callable[[FloatArray, slice], FloatArray]
"""From scales float32 [R, G] of the layer's rows in the slice to the nearest that can be stored."""

DEFAULT_SCALE = "float16"
NVFP4_BLOCK = 16
"""Inputs that share a scale in NVFP4."""
_FLOAT16_NORMAL = (2.0**-14, 65504.0)
_E4M3 = format_by_name("e4m3")
_MULTIPLIERS = 15
"""Largest 4-bit multiplier; 0 is a group without a scale."""


@dataclass(frozen=True)
class ScaleFormat:
    """What scales of a layer's groups may be.

    Attributes:
        name: of ``--scale``.
        summary: a few words for people.
        fit: given all scales of a layer, float32 [N, G] and not negative, how scales of its rows are
            rounded; 0 stays 0 and what is not 0 stays so.
        nbytes: of a scale in a bundle; of a layer whose scales float16 does not hold, 4.
    """

    name: str
    summary: str
    fit: Callable[[FloatArray], Rounder]
    nbytes: int = 2

    def rounded(self, scale: FloatArray) -> FloatArray:
        """The nearest scales [N, G] that the format holds."""
        return self.fit(scale)(scale, slice(None))


def in_float16(scale: npt.NDArray[np.floating]) -> bool:
    """Whether all scales that are not 0 lie in float16's normal range."""
    live = scale[scale > 0]
    low, high = _FLOAT16_NORMAL
    return bool(((live >= low) & (live <= high)).all())


def stored(scale: FloatArray, fmt: ScaleFormat) -> npt.NDArray[np.floating]:
    """Rounded scales [N, G] as a bundle holds them: float16 where that is exact, else float32."""
    if fmt.name != "float32" and in_float16(scale):
        half = scale.astype(np.float16)
        if np.array_equal(half.astype(np.float32), scale):
            return half
    return scale


def _keep(scale: FloatArray, _: slice) -> FloatArray:
    return scale


def _float16(full: FloatArray) -> Rounder:
    """float16 costs 16 bits a group where float32 costs 32, and moves a scale by 2^-11 at most."""
    if not in_float16(full):
        return _keep
    return lambda scale, _: scale.astype(np.float16).astype(np.float32)


def _e8m0(_: FloatArray) -> Rounder:
    """Powers of two, as OCP MX has them; the nearer in ratio."""

    def rounded(scale: FloatArray, _: slice) -> FloatArray:
        live = scale > 0
        power = np.clip(np.rint(np.log2(np.where(live, scale, 1).astype(np.float64))), -126, 127)
        return np.where(live, 2.0**power, 0).astype(np.float32)

    return rounded


def _factor(scale: FloatArray) -> np.float32:
    """The smallest power of two by which no scale exceeds e4m3's largest value, 448."""
    largest = float(scale.max(initial=0))
    if largest == 0:
        return np.float32(1)
    fraction, exponent = np.frexp(largest / _E4M3.max)
    return np.float32(2.0 ** (exponent - (fraction == 0.5)))


def _integers(scale: FloatArray, factor: np.float32) -> FloatArray:
    """Scales over the factor, in units of e4m3's smallest step; exact."""
    return (scale / factor) * np.float32(_E4M3.unit)


def _two_level(full: FloatArray) -> Rounder:
    """An e4m3 number a block times one power of two a layer, as NVFP4 has them."""
    factor = _factor(full)

    def rounded(scale: FloatArray, _: slice) -> FloatArray:
        nearest = numerics.round_to_grid(_integers(scale, factor), _E4M3)
        nearest = np.where(scale > 0, np.maximum(nearest, 1), 0)
        found: FloatArray = (nearest / np.float32(_E4M3.unit) * factor).astype(np.float32)
        return found

    return rounded


def two_levels(scale: FloatArray) -> tuple[npt.NDArray[np.uint8], np.float32] | None:
    """The e4m3 codes (uint8, same shape) and the factor whose products are exactly `scale`.

    None where there are no such codes.
    """
    factor = _factor(scale)
    integers = _integers(scale, factor)
    if not np.array_equal(numerics.round_to_grid(integers, _E4M3), integers):
        return None
    return numerics.encode(integers, _E4M3), factor


def _multiplier(full: FloatArray) -> Rounder:
    """An integer from 1 to 15 a group times one float16 a channel."""
    channel = full.max(axis=1, keepdims=True, initial=0) / np.float32(_MULTIPLIERS)
    if in_float16(channel):
        channel = channel.astype(np.float16).astype(np.float32)

    def rounded(scale: FloatArray, rows: slice) -> FloatArray:
        unit = channel[rows]
        live = (scale > 0) & (unit > 0)
        times = np.clip(np.rint(scale / np.where(unit > 0, unit, 1)), 1, _MULTIPLIERS)
        return np.where(live, times * unit, 0).astype(np.float32)

    return rounded


SCALE_FORMATS: dict[str, ScaleFormat] = {
    f.name: f
    for f in (
        ScaleFormat("float16", "two bytes, four for a layer that leaves its range", _float16),
        ScaleFormat("float32", "four bytes", lambda full: _keep, nbytes=4),
        ScaleFormat("e8m0", "powers of two (OCP MX)", _e8m0),
        ScaleFormat("nvfp4", "e4m3 a group times a power of two a layer (NVFP4)", _two_level),
        ScaleFormat(
            "int4", "an integer from 1 to 15 a group times a float16 a channel", _multiplier, 4
        ),
    )
}


def scale_format_by_name(name: str) -> ScaleFormat:
    """The scale format `name`.

    Raises:
        UsageError: no such format; the message lists the known ones.
    """
    if name not in SCALE_FORMATS:
        known = ", ".join(SCALE_FORMATS)
        raise UsageError(f"unknown scale format {name!r}: expected one of {known}")
    return SCALE_FORMATS[name]
