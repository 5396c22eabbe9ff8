"""Comparing arrays: every comparator says whether they agree, what was found, and where.

No comparator has a default tolerance; bounds are derived by the caller. NaN agrees with NaN alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers.formats import FloatArray, FloatFormat
from fp4dit_onnx.numbers.hadamard import hadamard
from fp4dit_onnx.numbers.numerics import SMALLEST_AMAX, group_count, quantize, round_to_grid

__all__ = [
    "Comparison",
    "attention_rounding_bound",
    "linear_rounding_bound",
    "mean",
    "quantize_rounding_bound",
    "ratio_db",
    "same_bits",
    "sqnr_db",
    "within",
]

Array = npt.NDArray[Any]
UNIT_ROUNDOFF = 2.0**-24
"""Of float32."""


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        ok: whether the arrays agree.
        detail: what was found where, empty if they agree.
        worst: largest share of the bound that was used; 0 for comparisons without one.
    """

    ok: bool
    detail: str = ""
    worst: float = 0.0


def _unlike(a: Array, b: Array) -> Comparison | None:
    if a.dtype != b.dtype or a.shape != b.shape:
        return Comparison(False, f"{a.dtype} {a.shape} against {b.dtype} {b.shape}")
    return None


def same_bits(a: Array, b: Array) -> Comparison:
    """Whether two arrays of one type and shape hold the same values; +0 equals -0."""
    unlike = _unlike(a, b)
    if unlike:
        return unlike
    both_nan = np.isnan(a) & np.isnan(b) if np.issubdtype(a.dtype, np.floating) else False
    differ = ~((a == b) | both_nan)
    if not differ.any():
        return Comparison(True)
    at = tuple(int(i) for i in np.argwhere(differ)[0])
    count = int(differ.sum())
    return Comparison(False, f"{count} of {a.size} differ, first at {at}: {a[at]} against {b[at]}")


def within(a: Array, b: Array, bound: Array) -> Comparison:
    """Whether ``|a - b| <= bound`` everywhere.

    Args:
        a: float array.
        b: the same shape and type.
        bound: broadcastable, not negative; where it is 0 the values must be equal.
    """
    unlike = _unlike(a, b)
    if unlike:
        return unlike
    limit = np.broadcast_to(np.asarray(bound, np.float64), a.shape)
    with np.errstate(invalid="ignore"):
        distance = np.abs(a.astype(np.float64) - b.astype(np.float64))
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    bad = ~equal & ~(distance <= limit)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(equal, 0.0, distance / limit)
    worst = float(share.max(initial=0.0)) if not bad.any() else float("inf")
    if not bad.any():
        return Comparison(True, worst=worst)
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    detail = f"at {at}: {a[at]} against {b[at]}, allowed {limit[at]:.3g}"
    return Comparison(False, detail, worst)


def linear_rounding_bound(
    q: Array, scale: Array, weight: Array, bias: Array, groups: int
) -> npt.NDArray[np.float64]:
    """How far two float32 evaluations of one quantized linear may lie apart, [M, N].

    Each term ``q w sw`` is rounded at most twice on its way into a sum of K terms, then scaled and
    added to the bias: at most K + 4 roundings a path in the body. In a kernel a term passes through
    its group's chain (float activations; integers add exactly), the chain of groups, the scale and
    the bias: at most K + groups + 3, groups counting the runs of an activation's scale too. With
    unit roundoff u, each path is off by at most ``n u / (1 - n u)`` times the sum of magnitudes
    (Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1), and the two add up.

    Args:
        q: integers [M, K].
        scale: [M, 1], [M, K] or [1].
        weight: dequantized weight [N, K].
        bias: [N].
        groups: scales per row of the weight, and per row of activations with several.
    """
    chain = q.shape[1] if q.dtype == np.float32 else 0
    roundings = (q.shape[1] + 4) + (chain + groups + 3)
    gamma = roundings * UNIT_ROUNDOFF / (1 - roundings * UNIT_ROUNDOFF)
    value = np.abs(q.astype(np.float64) * scale)
    magnitude = value @ np.abs(weight.astype(np.float64)).T
    total: npt.NDArray[np.float64] = gamma * (magnitude + np.abs(bias))
    return total


EXP_ERROR = 2.0**-17
"""Relative error allowed to the exponentials of two evaluators together: 4e-6 of ours, and about as
much of a runtime's."""
PROBABILITY_STEPS = 32767


def attention_rounding_bound(
    q: Array,
    q_scale: Array,
    k: Array,
    k_scale: Array,
    v: Array,
    v_scale: Array,
    bias: Array,
    attention_scale: float,
) -> npt.NDArray[np.float64]:
    """How far `attention.attention` and float32 attention on the dequantized tensors may lie apart.

    Scores differ by at most d, as linears of D inputs, so a probability by a factor of at most
    exp(2 d), numerator and sum, and twice EXP_ERROR. The sums over L keys, of exponentials and of
    values, add at most 2 L roundings in a runtime and L / 4 here. The definition rounds
    ``e * v_scale`` of a key to 16 bits, half a step of a tile's largest: against the row's sum at
    most ``p_max * max(v_scale) / (2 * 32767)`` a key, p_max the row's largest probability.

    Args:
        q: see `attention.attention`, also on the others.
        q_scale: of q.
        k: keys.
        k_scale: of k.
        v: values.
        v_scale: of v.
        bias: added to the scores.
        attention_scale: factor of the scores.

    Returns:
        float64 [B, S, H, D]; NaN where the scores are.
    """
    heads = [
        np.swapaxes(integers.astype(np.float64) * scale, 1, 2)
        for integers, scale in ((q, q_scale), (k, k_scale), (v, v_scale))
    ]  # [B, H, tokens, D]
    queries, keys, values = heads
    scores = queries @ np.swapaxes(keys, 2, 3) * attention_scale + bias
    sizes = np.abs(queries) @ np.swapaxes(np.abs(keys), 2, 3) * abs(attention_scale) + np.abs(bias)
    with np.errstate(invalid="ignore", over="ignore"):
        most = scores.max(axis=-1, keepdims=True)
        e = np.exp(scores - most)
        p = e / e.sum(axis=-1, keepdims=True)
        # Keys that are masked away carry no weight, whatever their scores' size.
        live = np.where(p > 0, sizes, 0).max(axis=-1, keepdims=True)
    apart = 2 * (q.shape[-1] + 10) * UNIT_ROUNDOFF * live
    sums = (2 * k.shape[1] + k.shape[1] // 4 + 20) * UNIT_ROUNDOFF
    factor = np.expm1(2 * apart) + 2 * EXP_ERROR + sums
    largest = (p.max(axis=-1) * v_scale.max(axis=(1, 3))[:, :, None])[..., None]  # [B, H, S, 1]
    step = largest / (2 * PROBABILITY_STEPS)
    units = np.abs(np.swapaxes(v.astype(np.float64), 1, 2)).sum(axis=2, keepdims=True)
    bound = factor * (p @ np.abs(values)) + step * units
    total: npt.NDArray[np.float64] = np.swapaxes(bound, 1, 2)
    return total


def quantize_rounding_bound(
    x: FloatArray,
    apart: npt.NDArray[np.float64],
    fmt: FloatFormat,
    group_size: int,
    candidates: Sequence[float],
    block: int = 1,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """How far two evaluations may lie apart that quantize values which lie `apart`.

    A rotation adds up to ``sqrt(block)`` of the largest distances, and of the values ``log2(block)``
    roundings each. With d the largest distance of a group whose largest magnitude is a, that of the
    other is within d of it, so scales are within d by the largest integer m; and ``t = x m / a`` is
    within ``m d (|x| / a + 1) / (a - d)`` and the roundings of factor and product. Rounding is monotone:
    integers lie between what the ends of that range become. Of several candidates either may have
    another one.

    Args:
        x: what the reference quantizes, before it is rotated, float32 [..., K].
        apart: as x.
        fmt: see `numerics.quantize`, as the next two.
        group_size: elements that share a scale.
        candidates: the format's largest integer first.
        block: of the Hadamard matrices; 1 for none.

    Returns:
        Of the integers [..., K], and of the scales [..., G].
    """
    k = x.shape[-1]
    size = min(group_size, k)
    groups = group_count(k, size)

    def grouped(values: Array) -> Array:
        padded = np.pad(values, [(0, 0)] * (x.ndim - 1) + [(0, groups * size - k)])
        return padded.reshape(*x.shape[:-1], groups, size)

    with np.errstate(all="ignore"):
        if block > 1:
            roundings = 2 * (block.bit_length() + 1) * UNIT_ROUNDOFF
            most = np.fmax.reduce(apart + roundings * np.abs(x), -1, keepdims=True)
            apart = np.broadcast_to(math.sqrt(block) * most, x.shape)
            x = hadamard(x, block)
        q = grouped(quantize(x, fmt, group_size, candidates[1:])[0].astype(np.float64))
        values, d = grouped(x), grouped(apart).max(-1, keepdims=True)
        amax = np.abs(values.astype(np.float64)).max(-1, keepdims=True)
        sure = (amax - d >= SMALLEST_AMAX) | (d == 0)
        share = np.where(amax > 0, np.abs(values) / amax, 0)
        ranges = []
        for limit in candidates:
            t = share * np.copysign(limit, values)
            off = limit * (d * (share + 1) / (amax - d) + 8 * UNIT_ROUNDOFF)
            ends = [np.clip(round_to_grid(t + s * off, fmt), -limit, limit) for s in (-1, 1)]
            ranges.append(np.maximum(ends[1] - q, q - ends[0]))
        integers = np.where(sure, np.maximum.reduce(ranges), np.where(d > 0, np.inf, 0))
        least = min(candidates)
        own = np.where(sure, (4 * UNIT_ROUNDOFF + 1) / least - 1 / max(candidates), 1 / least)
        scales = d / least + amax * own
    flat = integers.reshape(*x.shape[:-1], groups * size)[..., :k]
    return flat, np.where(np.isfinite(scales), scales, 0)[..., 0]


def sqnr_db(signal: Array, approximation: Array) -> float:
    """10 log10(|signal|^2 / |signal - approximation|^2); infinite if equal, NaN if either has NaN."""
    reference = signal.astype(np.float64)
    noise = float(np.square(reference - approximation.astype(np.float64)).sum())
    return ratio_db(float(np.square(reference).sum()), noise)


def ratio_db(signal: float, noise: float) -> float:
    """10 log10 of the ratio of two energies; infinite without noise, -infinite without signal."""
    if noise == 0:
        return math.inf
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.float64(signal) / noise))


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
