"""The numpy reference: the obvious definition that torch, ONNX and C++ must match bit for bit.

Everything is float32 and computed on grid integers (see `formats`): a quantized tensor is integers
`q` and a `scale` with ``value = q * scale``. The scale of an integer grid differs from the usual
``amax / format.max`` by the power of two `unit`, so both spellings give the same bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.formats import FloatArray, FloatFormat

__all__ = [
    "SMALLEST_AMAX",
    "decode",
    "dequantize",
    "encode",
    "expand_groups",
    "fma",
    "group_count",
    "linear",
    "pack",
    "quantize",
    "quantize_groups",
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
    magnitude = np.searchsorted(fmt.magnitudes, np.abs(integers)).astype(np.uint8)
    sign = np.signbit(integers).astype(np.uint8) << np.uint8(fmt.bits - 1)
    codes: npt.NDArray[np.uint8] = magnitude | sign
    return codes


def decode(codes: npt.NDArray[np.uint8], fmt: FloatFormat) -> FloatArray:
    """Grid integers (float32, same shape) of `codes`."""
    return fmt.grid[codes]


def quantize(x: FloatArray, fmt: FloatFormat) -> tuple[npt.NDArray[np.generic], FloatArray]:
    """Quantize online, one scale a row of the last axis (FP4DiT section "token-wise" activations).

    Args:
        x: float32 [..., K].
        fmt: the element format.

    Returns:
        Grid integers [..., K] of `fmt.integer_type`, and scales float32 [..., 1]. A row below
        `SMALLEST_AMAX` has scale 0; a row with NaN or infinity has scale NaN; both have q = 0.
    """
    finite = np.isfinite(x).all(axis=-1, keepdims=True)
    amax = np.where(finite, np.abs(np.where(finite, x, 0)).max(axis=-1, keepdims=True), 0)
    amax = amax.astype(np.float32)
    live = amax >= SMALLEST_AMAX
    limit = np.float32(fmt.max_integer)
    factor = limit / np.where(live, amax, np.float32(1))
    q = np.where(live, round_to_grid(np.where(live, x, np.float32(0)) * factor, fmt), 0)
    scale = np.where(live, amax / limit, np.float32(0))
    scale = np.where(finite, scale, np.float32(np.nan)).astype(np.float32)
    return q.astype(fmt.integer_type), scale


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


def pack(codes: npt.NDArray[np.uint8], storage_bits: int) -> npt.NDArray[np.uint8]:
    """Bytes of codes [N, K]: 4-bit codes two a byte, even element in the low nibble, odd K padded."""
    if storage_bits == 8:
        return np.ascontiguousarray(codes)
    padded = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return padded[:, 0::2] | (padded[:, 1::2] << np.uint8(4))


def unpack(packed: npt.NDArray[np.uint8], k: int, storage_bits: int) -> npt.NDArray[np.uint8]:
    """Codes uint8 [N, k] of the bytes that `pack` made."""
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
) -> FloatArray:
    """The definition of FpLinear, bit for bit what every kernel returns.

    Per group the products of grid integers are summed exactly (integer activations) or by a float32
    fma chain over ascending k (float activations); then ``s = fma(weight_scale, sum, s)`` over
    ascending groups from s = 0, and ``y = fma(scale, s, bias)``.

    Args:
        q: [M, K] grid integers: int8 or int16, or float32 (weight-only, or a wide format).
        scale: float32 [M, 1] or [1].
        weight: float32 [N, K] grid integers.
        weight_scale: float16 or float32 [N, G].
        bias: float32 [N].
        group_size: inputs per group.

    Returns:
        float32 [M, N].
    """
    m, k = q.shape
    total = np.zeros((m, weight.shape[0]), np.float32)
    steps = weight_scale.astype(np.float32)
    for g in range(group_count(k, group_size)):
        part = slice(g * group_size, min(k, (g + 1) * group_size))
        if q.dtype == np.float32:
            acc = np.zeros_like(total)
            for i in range(part.start, part.stop):
                acc = fma(q[:, i, None], weight[None, :, i], acc)
        else:  # float64 holds these integer sums exactly
            exact = q[:, part].astype(np.float64) @ weight[:, part].T.astype(np.float64)
            acc = exact.astype(np.float32)
        total = fma(steps[None, :, g], acc, total)
    return fma(scale, total, bias)
