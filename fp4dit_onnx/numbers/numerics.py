"""The numpy reference: the obvious definition that torch, ONNX and C++ must match bit for bit.

Everything is float32 and computed on grid integers (see `formats`): a quantized tensor is integers
`q` and a `scale` with ``value = q * scale``. The scale of an integer grid differs from the usual
``amax / format.max`` by the power of two `unit`, so both spellings give the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers.formats import FloatArray, FloatFormat

__all__ = [
    "CANDIDATE_GROUP",
    "FINENESS",
    "SMALLEST_AMAX",
    "SUM_LIMIT",
    "decode",
    "dequantize",
    "encode",
    "expand_groups",
    "fma",
    "group_count",
    "largest_sum",
    "linear",
    "linear_integer",
    "pack",
    "quantize",
    "quantize_groups",
    "quantize_static",
    "round_to_grid",
    "unpack",
]

SMALLEST_AMAX = np.float32(2.0**-90)
"""A row or group whose largest magnitude is below this counts as zero.

Large enough that ``max_integer / amax`` stays finite for every format (e5m2 reaches 2^31.8)."""


def round_to_grid(t: npt.NDArray[np.floating], fmt: FloatFormat) -> FloatArray:
    """Nearest grid integer of `t` (any shape, in grid-integer units), saturating, ties to even.

    "Even" is the parity of the significand in units of the step: with no mantissa bits every
    significand is 1, so ties between two powers of two go up. NaN gives 0.
    """
    low, high = fmt.magnitudes[:-1], fmt.magnitudes[1:]
    middle = ((low + high) / 2).astype(np.float32)
    odd = (low / (high - low)) % 2 == 1
    threshold = np.where(odd, middle, np.nextafter(middle, np.float32(np.inf)))
    magnitude = np.abs(t).astype(np.float32)
    index = np.searchsorted(threshold, np.where(np.isnan(magnitude), 0, magnitude), side="right")
    nearest: FloatArray = np.copysign(fmt.magnitudes[index], t).astype(np.float32)
    return nearest


def encode(integers: npt.NDArray[np.floating], fmt: FloatFormat) -> npt.NDArray[np.uint8]:
    """Codes (uint8, same shape) of grid integers that lie on the grid; the sign of zero is kept."""
    bits = np.ascontiguousarray(integers, np.float32).view(np.uint32)
    codes: npt.NDArray[np.uint8] = _codes_by_bits(fmt)[bits >> np.uint32(23 - fmt.mantissa_bits)]
    return codes


@functools.cache
def _codes_by_bits(fmt: FloatFormat) -> npt.NDArray[np.uint8]:
    """Code by sign, exponent and the format's mantissa bits of a grid integer's float32."""
    table = np.zeros(1 << (9 + fmt.mantissa_bits), np.uint8)
    shift = np.uint32(23 - fmt.mantissa_bits)
    magnitudes = np.asarray(fmt.magnitudes, np.float32)
    own = np.arange(len(magnitudes), dtype=np.uint8)
    for sign, values in enumerate((magnitudes, -magnitudes)):
        at = np.copysign(values, -1 if sign else 1).astype(np.float32).view(np.uint32) >> shift
        table[at] = own | np.uint8(sign << (fmt.bits - 1))
    return table


def decode(codes: npt.NDArray[np.uint8], fmt: FloatFormat) -> FloatArray:
    """Grid integers (float32, same shape) of `codes`."""
    return fmt.grid[codes]


FINENESS = np.float32(64)
"""Steps of a grid integer in which errors are compared."""
CANDIDATE_GROUP = 1024
"""The longest group whose squared errors, in these steps, float32 adds exactly."""


def quantize(
    x: FloatArray,
    fmt: FloatFormat,
    group_size: int | None = None,
    candidates: Sequence[float] = (),
) -> tuple[npt.NDArray[np.generic], FloatArray]:
    """Quantize online, one scale per row or group of the last axis (FP4DiT: "token-wise").

    Args:
        x: float32 [..., K].
        fmt: the element format.
        group_size: elements that share a scale; None for all of a row. The last group may be short.
        candidates: grid integers that a group's largest magnitude may become in place of the format's
            largest, where the group's squared error is less: ``[8]`` for e2m1 is four-over-six.

    Returns:
        Grid integers [..., K] of `fmt.integer_type`, and scales float32 [..., G]. A group below
        `SMALLEST_AMAX` has scale 0; one with NaN or infinity has scale NaN; both have q = 0.
    """
    k = x.shape[-1]
    size = min(group_size or k, k)
    groups = group_count(k, size)
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, groups * size - k)])
    grouped = padded.reshape(*x.shape[:-1], groups, size)
    finite = np.isfinite(grouped).all(axis=-1, keepdims=True)
    amax = np.abs(np.where(finite, grouped, 0)).max(axis=-1, keepdims=True).astype(np.float32)
    live = finite & (amax >= SMALLEST_AMAX)
    t = np.where(live, grouped, np.float32(0))
    unit = np.where(live, amax, np.float32(1))
    limit = np.full(unit.shape, fmt.max_integer, np.float32)
    q, least = _scaled(t, unit, limit, fmt)
    for candidate in candidates:
        other = np.full(unit.shape, candidate, np.float32)
        found, error = _scaled(t, unit, other, fmt)
        better = error < least
        q, least = np.where(better, found, q), np.where(better, error, least)
        limit = np.where(better, other, limit)
    scale = np.where(live, amax / limit, np.float32(0))
    scale = np.where(finite, scale, np.float32(np.nan)).astype(np.float32)
    flat = q.reshape(padded.shape)[..., :k].astype(fmt.integer_type)
    return flat, scale[..., 0]


def _scaled(
    x: FloatArray, amax: FloatArray, limit: FloatArray, fmt: FloatFormat
) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Grid integers of groups [..., g] whose `amax` becomes `limit`, and the error of that.

    The error [..., 1] is the sum of squares of whole steps, 1 / `FINENESS` of a grid integer, over the
    limit's square: of candidates' errors float64 tells apart what differs, and equal ones are equal.
    """
    t = x * (limit / amax)
    q = np.clip(round_to_grid(t, fmt), -limit, limit)
    steps = np.rint((t - q) * FINENESS).astype(np.float64)
    error = np.square(steps).sum(axis=-1, keepdims=True) / np.square(limit.astype(np.float64))
    return q, error


def quantize_static(
    x: FloatArray, fmt: FloatFormat, largest: float
) -> tuple[npt.NDArray[np.generic], FloatArray]:
    """Quantize under one scale that is given: `quantize` of rows whose largest magnitude is `largest`.

    Args:
        x: float32 [..., K]; what exceeds `largest` in magnitude is cut off.
        fmt: the element format.
        largest: a float32, at least `SMALLEST_AMAX` and finite.

    Returns:
        Grid integers [..., K] of `fmt.integer_type`, and scales float32 [..., 1]. A row with NaN or
        infinity has scale NaN and q = 0.
    """
    finite = np.isfinite(x).all(axis=-1, keepdims=True)
    limit, most = np.float32(fmt.max_integer), np.float32(largest)
    t = np.clip(np.where(finite, x, np.float32(0)), -most, most) * (limit / most)
    q = np.clip(round_to_grid(t, fmt), -limit, limit)
    return q.astype(fmt.integer_type), np.where(finite, most / limit, np.float32(np.nan))


SUM_LIMIT = 2**31
"""Sums of integers stay below this in magnitude."""


def largest_sum(activation: FloatFormat, weight: FloatFormat, size: int) -> int:
    """The largest sum that any kernel of any machine may hold on the way to `size` exact products.

    Some instructions multiply unsigned by signed bytes: kernels add up to 128 to int8 weights, and take
    it off again. Others know bytes alone: kernels cut activations that are wider into two, 256 * high
    + low. One bound serves all machines, so that they accept and refuse the same models.

    Args:
        activation: format of the one factor, whose integers are int8 or int16.
        weight: of the other, likewise.
        size: products that are summed, 1 or more.
    """
    act, other = int(activation.max_integer), int(weight.max_integer)
    if max(act, other) <= 127:
        return act * (other + 128) * size
    return -(-act // 256) * 256 * other * size


def group_count(size: int, group_size: int) -> int:
    """Groups along an axis of `size`; the last one may be short."""
    return -(-size // group_size)


def expand_groups(scale: FloatArray, size: int, group_size: int) -> FloatArray:
    """Repeat group scales [..., G] to one per element [..., size]."""
    return scale[..., np.arange(size) // group_size]


def quantize_groups(
    w: FloatArray, scale: FloatArray, fmt: FloatFormat, group_size: int
) -> npt.NDArray[np.uint8]:
    """Codes (uint8 [N, K]) of weights `w` float32 [N, K] under given group scales [N, G].

    Nearest value of ``w / scale``; a group of scale 0 gets codes 0.
    """
    step = expand_groups(scale, w.shape[-1], group_size)
    live = step > 0
    t = np.where(live, w, np.float32(0)) / np.where(live, step, np.float32(1))
    return encode(round_to_grid(t, fmt), fmt)


def dequantize(q: npt.NDArray[np.generic], scale: FloatArray, group_size: int) -> FloatArray:
    """Values float32 [..., K] of grid integers [..., K] under group scales [..., G]."""
    step = expand_groups(scale.astype(np.float32), q.shape[-1], group_size)
    return q.astype(np.float32) * step


def pack(
    codes: npt.NDArray[np.uint8], storage_bits: int, wide: int | None = None
) -> npt.NDArray[np.uint8]:
    """Bytes of codes [N, K]: 4-bit codes two per byte, even element in the low nibble, odd K padded.

    Beyond the first `wide`, an even number, a 4-bit code is that of 1 or -1 and takes one bit, its
    sign; the first in the lowest bit, then zeros up to whole bytes.
    """
    if wide is not None:
        signs = np.packbits(codes[:, wide:] >> np.uint8(3), axis=1, bitorder="little")
        return np.concatenate([pack(codes[:, :wide], storage_bits), signs], axis=1)
    if storage_bits == 8:
        return np.ascontiguousarray(codes)
    padded = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return padded[:, 0::2] | (padded[:, 1::2] << np.uint8(4))


def unpack(
    packed: npt.NDArray[np.uint8], k: int, storage_bits: int, wide: int | None = None
) -> npt.NDArray[np.uint8]:
    """Codes uint8 [N, k] of the bytes that `pack` made."""
    if wide is not None:
        bits = np.unpackbits(packed[:, wide // 2 :], axis=1, count=k - wide, bitorder="little")
        signs = bits << np.uint8(3) | np.uint8(1)
        return np.concatenate([unpack(packed[:, : wide // 2], wide, storage_bits), signs], axis=1)
    if storage_bits == 8:
        return packed[:, :k]
    nibbles = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)  # [N, B, 2]
    return nibbles.reshape(packed.shape[0], -1)[:, :k]


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> FloatArray:
    """Correctly rounded float32 ``a * b + c`` of float32 inputs, broadcast.

    The product is exact in float64. The sum is rounded to odd in float64 (two-sum finds the error),
    after which the rounding to float32 cannot round twice.
    """
    addend = np.asarray(c, np.float32).astype(np.float64)
    with np.errstate(invalid="ignore"):
        product = np.asarray(a, np.float32).astype(np.float64) * np.asarray(b, np.float32)
        total = np.asarray(product + addend)
        back = total - product
        error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    # Away from zero where the true sum is larger in magnitude, else towards zero.
    step = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where(inexact, bits + step, bits).view(np.float64)
    with np.errstate(over="ignore"):
        return odd.astype(np.float32)


def linear(
    q: npt.NDArray[np.generic],
    scale: FloatArray,
    weight: FloatArray,
    weight_scale: FloatArray,
    bias: FloatArray,
    group_size: int,
    act_group_size: int | None = None,
) -> FloatArray:
    """The definition of FpLinear, bit for bit what every kernel returns.

    Per group the products of grid integers are summed exactly (integer activations) or by a float32
    fma chain over ascending k (float activations); then ``s = fma(weight_scale, sum, s)`` over
    ascending groups from s = 0, and ``y = fma(scale, s, bias)``. Where a row has several scales, groups
    are cut into runs of one scale: ``t = fma(scale, sum, t)`` over a group's runs from t = 0, and
    ``y = fma(weight_scale, t, y)`` over ascending groups from y = bias.

    Args:
        q: [M, K] grid integers: int8 or int16, or float32 (weight-only, or a wide format).
        scale: float32 [M, J] or [1].
        weight: float32 [N, K] grid integers.
        weight_scale: float16 or float32 [N, G].
        bias: float32 [N].
        group_size: inputs per group.
        act_group_size: inputs of a row per scale; None for all.

    Returns:
        float32 [M, N].
    """
    k, steps = q.shape[1], weight_scale.astype(np.float32)
    several = scale.shape[-1] > 1
    start_at = bias if several else np.float32(0)
    total = np.broadcast_to(start_at, (len(q), len(weight))).astype(np.float32)
    for g in range(group_count(k, group_size)):
        start, stop = g * group_size, min(k, (g + 1) * group_size)
        if several:
            assert act_group_size is not None
            part = np.zeros_like(total)
            while start < stop:
                j = start // act_group_size
                end = min(stop, (j + 1) * act_group_size)
                part = fma(scale[:, j, None], _sum(q, weight, slice(start, end)), part)
                start = end
        else:
            part = _sum(q, weight, slice(start, stop))
        total = fma(steps[None, :, g], part, total)
    return total if several else fma(scale, total, bias)


def linear_integer(
    q: npt.NDArray[np.generic],
    scale: FloatArray,
    weight: FloatArray,
    channel_scale: FloatArray,
    bias: FloatArray,
    act_group_size: int | None = None,
) -> FloatArray:
    """The definition of FpLinearInteger, bit for bit what every kernel and the body return.

    With one scale per row ``y = scale * (channel_scale * sum) + bias``, each step rounded to float32:
    the sum is exact, so a body of standard operators has the same bits. With several it is `linear`
    of one group per row.

    Args:
        q: int8 [M, K] grid integers.
        scale: float32 [M, J].
        weight: float32 [N, K] grid integers times their groups' multipliers.
        channel_scale: float16 or float32 [N].
        bias: float32 [N].
        act_group_size: inputs of a row per scale; None for all.

    Returns:
        float32 [M, N].
    """
    channels, k = channel_scale.astype(np.float32), q.shape[1]
    if scale.shape[-1] > 1:
        return linear(q, scale, weight, channels[:, None], bias, k, act_group_size)
    y: FloatArray = scale * (channels * _sum(q, weight, slice(0, k))) + bias
    return y


def _sum(q: npt.NDArray[np.generic], weight: FloatArray, part: slice) -> FloatArray:
    """Sums [M, N] of products over the inputs of `part`, of integers exact and rounded once."""
    if q.dtype != np.float32:  # float64 holds these integer sums exactly
        exact = q[:, part].astype(np.float64) @ weight[:, part].T.astype(np.float64)
        return exact.astype(np.float32)
    acc = np.zeros((len(q), len(weight)), np.float32)
    for i in range(part.start, part.stop):
        acc = fma(q[:, i, None], weight[None, :, i], acc)
    return acc
