"""Scale formats: what the scale of a group may be, and how it is rounded to that.

A scale is rounded *before* codes are chosen, so that codes and scales fit each other. Stages work on
rounded scales [N, G]; a layer keeps them as parts by role (`ScaleFormat.split`), from which
`ScaleFormat.join` makes the same scales again, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FloatArray, FloatFormat, format_by_name

__all__ = [
    "DEFAULT_SCALE",
    "MULTIPLIED",
    "NVFP4_BLOCK",
    "SCALE_FORMATS",
    "ScaleFormat",
    "channel_rounded",
    "largest_multiplier",
    "multipliers_of",
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
MULTIPLIED = "int4*f32"
_MULTIPLIERS = 15
"""Largest 4-bit multiplier; 0 is a group without a scale."""
_FACTOR_BITS = 7
"""Significant bits of a factor that is no power of two: with e4m3's 4 they fit into float16's 11."""
_CHANNEL_BITS = 16
"""Significant bits of a channel's scale: its products with multipliers are exact in float32."""

Parts = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ScaleFormat:
    """What scales of a layer's groups may be.

    Attributes:
        name: of ``--scale``.
        summary: a few words for people.
        fit: given all scales of a layer, float32 [N, G] and not negative, and the element format of
            its weight, how scales of its rows are rounded; 0 stays 0 and what is not 0 stays so.
        nbytes: of a scale as it is stored; of a layer whose scales float16 does not hold, 4.
        multiplied: whether a layer stores integers for its groups and one scale per channel.
        fit_choice: `fit` where a group may have its scale or larger ones, up to a share of it that is
            given last; None for that of the largest.
    """

    name: str
    summary: str
    fit: Callable[[FloatArray, FloatFormat], Rounder]
    nbytes: int = 2
    multiplied: bool = False
    fit_choice: Callable[[FloatArray, FloatFormat, float], Rounder] | None = None

    def fit_larger(self, scale: FloatArray, fmt: FloatFormat, most: float) -> Rounder:
        """`fit`, where each group may have `scale` or larger ones, up to `most` times it."""
        if self.fit_choice is not None:
            return self.fit_choice(scale, fmt, most)
        return self.fit(scale * np.float32(most), fmt)

    def rounded(self, scale: FloatArray, fmt: FloatFormat) -> FloatArray:
        """The nearest scales [N, G] that the format holds, for a weight of format `fmt`."""
        return self.fit(scale, fmt)(scale, slice(None))

    def shapes(self, n: int, groups: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the parts of `n` channels of `groups` scales each, by role."""
        if self.multiplied:
            return {"multipliers": (n, -(-groups // 2)), "channel_scale": (n,)}
        return {"scale": (n, groups)}

    def stored_bytes(self, n: int, groups: int) -> int:
        """Bytes of the parts, as they usually are."""
        return n * (-(-groups // 2) + 4) if self.multiplied else n * groups * self.nbytes

    def split(self, scale: npt.NDArray[np.floating], fmt: FloatFormat) -> Parts:
        """The parts of rounded scales [N, G], for a weight of format `fmt`.

        ``scale`` float16 [N, G] where that is exact, else float32; or ``multipliers`` uint8
        [N, ceil(G / 2)], two of 4 bits per byte, and ``channel_scale`` float32 [N].

        Raises:
            UsageError: multipliers are asked for and the scales are not products of them.
        """
        full = scale.astype(np.float32)
        if not self.multiplied:
            return {"scale": stored(full, self)}
        found = _multipliers(full, fmt)
        if found is None:
            raise UsageError(
                f"scales that are not integers up to {largest_multiplier(fmt)} times one float per "
                f"channel: expected those of scale format {self.name}"
            )
        multiplier, channel = found
        return {"multipliers": numerics.pack(multiplier, 4), "channel_scale": channel}

    def join(self, parts: Parts, groups: int) -> npt.NDArray[np.floating]:
        """The scales [N, G] of which `parts` are made: float32, or float16 where that is stored."""
        if not self.multiplied:
            return parts["scale"]
        channel: FloatArray = parts["channel_scale"][:, None]
        return multipliers_of(parts["multipliers"], groups) * channel


def multipliers_of(packed: npt.NDArray[np.uint8], groups: int) -> FloatArray:
    """Multipliers float32 [N, groups] of bytes uint8 [N, ceil(groups / 2)]."""
    return numerics.unpack(packed, groups, 4).astype(np.float32)


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


def _float32(full: FloatArray, _: FloatFormat) -> Rounder:
    return _keep


def _float16(full: FloatArray, _: FloatFormat) -> Rounder:
    """float16 costs 16 bits per group where float32 costs 32, and moves a scale by 2^-11 at most."""
    if not in_float16(full):
        return _keep
    return lambda scale, _: scale.astype(np.float16).astype(np.float32)


def _e8m0(full: FloatArray, _: FloatFormat) -> Rounder:
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


def _two_level(full: FloatArray, _: FloatFormat) -> Rounder:
    """An e4m3 number per block times one power of two per layer, as NVFP4 has them."""
    return _times(_factor(full))


def _two_level_choice(full: FloatArray, _: FloatFormat, most: float) -> Rounder:
    """The largest scale becomes a power of two of e4m3, so that `most` times it is one too.

    Four over six (arXiv 2512.02010) has amax / (6 * 256) in float32 as the factor; here it has as many
    significant bits as leave its products with e4m3 exact in float16.
    """
    top = 2.0 ** np.floor(np.log2(_E4M3.max / most))
    fraction, exponent = np.frexp(full.max(initial=0) / np.float32(top))
    limit = np.float32(2.0**_FACTOR_BITS)
    nearest = np.ldexp(np.rint(fraction * limit) / limit, exponent)
    return _times(np.float32(nearest) if nearest else np.float32(1))


def _times(factor: np.float32) -> Rounder:
    """Scales that are an e4m3 number times the factor."""

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
    largest = scale.max(initial=0)
    # Either rule leaves the largest scale in e4m3's upper binades.
    others = (largest / np.float32(value / _E4M3.unit) for value in _E4M3.magnitudes[:-33:-1])
    for factor in (_factor(scale), *others):
        integers = _integers(scale, factor)
        exact = np.array_equal((integers / np.float32(_E4M3.unit)) * factor, scale)
        if exact and np.array_equal(numerics.round_to_grid(integers, _E4M3), integers):
            return numerics.encode(integers, _E4M3), factor
    return None


def largest_multiplier(fmt: FloatFormat) -> int:
    """The largest multiplier for grid integers of `fmt`: 4 bits hold it and int8 their product."""
    return max(1, min(_MULTIPLIERS, 127 // int(fmt.max_integer)))


def channel_rounded(channel: FloatArray) -> FloatArray:
    """Scales of channels, float32 of any shape, rounded to those whose multiples are exact."""
    fraction, exponent = np.frexp(channel)
    limit = np.float32(2.0**_CHANNEL_BITS)
    nearest: FloatArray = np.ldexp(np.rint(fraction * limit) / limit, exponent).astype(np.float32)
    return nearest


def _multiplier(full: FloatArray, fmt: FloatFormat) -> Rounder:
    """An integer from 1 to `largest_multiplier` per group, times one float per channel."""
    most = largest_multiplier(fmt)
    channel = channel_rounded(full.max(axis=1, keepdims=True, initial=0) / np.float32(most))

    def rounded(scale: FloatArray, rows: slice) -> FloatArray:
        unit = channel[rows]
        live = (scale > 0) & (unit > 0)
        times = np.clip(np.rint(scale / np.where(unit > 0, unit, 1)), 1, most)
        return np.where(live, times * unit, 0).astype(np.float32)

    return rounded


def _multipliers(
    scale: FloatArray, fmt: FloatFormat
) -> tuple[npt.NDArray[np.uint8], FloatArray] | None:
    """Multipliers uint8 [N, G] and scales of channels float32 [N] whose products are `scale`.

    Each channel's multipliers are the smallest that there are. None where there are none.
    """
    largest = scale.max(axis=1, initial=0)
    channel, done = np.zeros_like(largest), largest == 0
    multiplier = np.zeros(scale.shape, np.uint8)
    for most in range(1, largest_multiplier(fmt) + 1):
        unit = largest / np.float32(most)
        times = np.rint(scale / np.where(unit > 0, unit, np.float32(1))[:, None])
        fits = ~done & (times * unit[:, None] == scale).all(axis=1)
        channel = np.where(fits, unit, channel)
        multiplier = np.where(fits[:, None], times, multiplier).astype(np.uint8)
        done |= fits
    return (multiplier, channel) if done.all() else None


SCALE_FORMATS: dict[str, ScaleFormat] = {
    f.name: f
    for f in (
        ScaleFormat("float16", "two bytes, four in layers outside its range", _float16),
        ScaleFormat("float32", "four bytes", _float32, nbytes=4),
        ScaleFormat("e8m0", "powers of two (OCP MX)", _e8m0),
        ScaleFormat(
            "nvfp4",
            "e4m3 per group times a power of two per layer (NVFP4)",
            _two_level,
            fit_choice=_two_level_choice,
        ),
        ScaleFormat(
            MULTIPLIED,
            "a 4-bit integer per group times a float32 per channel",
            _multiplier,
            multiplied=True,
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
