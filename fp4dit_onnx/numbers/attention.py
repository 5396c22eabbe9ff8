"""Quantized attention in numpy: the definition of FpAttention, which C++ must match bit for bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers.formats import FloatArray, FloatFormat
from fp4dit_onnx.numbers.numerics import SUM_LIMIT, fma, group_count, largest_sum, linear, quantize

__all__ = ["KEY_TILE", "attention", "exp", "value_group"]

KEY_TILE = 256
"""Keys that attention scores at a time."""
SOFTMAX_LANES = 16
"""Partial sums of a row's exponentials."""
PROBABILITY_FORMAT = FloatFormat("int16", 0, 15)
"""Integers that a tile's probabilities, times the values' scales, are quantized to."""


def exp(x: FloatArray) -> FloatArray:
    """The exponential of float32 x <= 0 (any shape), to a relative 4e-6; 0 below -87, NaN of NaN.

    2^n * exp(r) with n the nearest integer of x / ln 2, and the first six terms of exp's series.
    """
    rounder = np.float32(1.5 * 2**23)
    with np.errstate(invalid="ignore", over="ignore"):
        z = fma(x, np.float32(1.44269502), rounder)  # n in the lowest bits
        n = z - rounder
        r = fma(n, np.float32(2.12194442e-4), fma(n, np.float32(-0.693359375), x))
        p = np.full_like(r, np.float32(1 / 120))
        for term in (1 / 24, 1 / 6, 0.5, 1.0, 1.0):
            p = fma(p, r, np.float32(term))
        power = (z.view(np.uint32) << np.uint32(23)) + np.uint32(127 << 23)
        found = p * power.view(np.float32)
    result: FloatArray = np.where(x < np.float32(-87), np.float32(0), found)
    return result


def value_group(fmt: FloatFormat) -> int:
    """Keys whose products with values of `fmt` fit a sum: a power of two, `KEY_TILE` at most."""
    group = KEY_TILE
    while largest_sum(PROBABILITY_FORMAT, fmt, group) >= SUM_LIMIT:
        group //= 2
    return group


def attention(
    q: npt.NDArray[np.generic],
    q_scale: FloatArray,
    k: npt.NDArray[np.generic],
    k_scale: FloatArray,
    v: npt.NDArray[np.generic],
    v_scale: FloatArray,
    bias: FloatArray,
    attention_scale: float,
    fmt: FloatFormat,
) -> FloatArray:
    """The definition of FpAttention, bit for bit what every kernel returns.

    ``s = fma(q_scale, (k_scale * attention_scale) * sum, bias)`` with the exact sum of q * k. Keys
    come in tiles of `KEY_TILE`, ascending (online softmax): with m the largest score so far and m'
    the one before the tile, ``e = exp(s - m)``, ``l = l * exp(m' - m) + sum of e`` and
    ``y = y * exp(m' - m) + t``. In t the products ``e * v_scale`` of a row's tile are quantized to
    16-bit integers p under one scale, and multiplied exactly with v in groups as long as 32 bits
    hold; ``t = scale * (sum of the groups)``. The result is ``y / l``.

    Args:
        q: [B, S, H, D] grid integers of `fmt`, int8 or int16.
        q_scale: float32 [B, S, H, 1].
        k: [B, L, H, D], as q.
        k_scale: float32 [B, L, H, 1].
        v: [B, L, H, D], as q.
        v_scale: float32 [B, L, H, 1].
        bias: float32 [1 or B, 1, 1, 1 or L], added to the scores.
        attention_scale: factor of the scores, as float32.
        fmt: of q, k and v.

    Returns:
        float32 [B, S, H, D]. A row whose scores have a NaN, or no score above -inf, is NaN.
    """
    batch, queries, heads, size = q.shape
    keys = k.shape[1]
    biases = np.broadcast_to(bias, (batch, 1, 1, keys)).astype(np.float32)
    y = np.empty((batch, queries, heads, size), np.float32)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for b in range(batch):
            for h in range(heads):
                scale = (k_scale[b, :, h, 0] * np.float32(attention_scale)).astype(np.float32)
                sums = q[b, :, h].astype(np.float64) @ k[b, :, h].T.astype(np.float64)
                scores = fma(
                    q_scale[b, :, h], scale * sums.astype(np.float32), biases[b, 0]
                )  # [S, L]
                y[b, :, h] = _weighted(scores, v[b, :, h], v_scale[b, :, h, 0], fmt)
    return y


def _weighted(
    scores: FloatArray, v: npt.NDArray[np.generic], v_scale: FloatArray, fmt: FloatFormat
) -> FloatArray:
    """Softmax of `scores` [S, L] times values [L, D]: float32 [S, D]."""
    most = np.full((scores.shape[0], 1), -np.inf, np.float32)
    total = np.zeros_like(most)
    y = np.zeros((scores.shape[0], v.shape[1]), np.float32)
    group = value_group(fmt)
    for start in range(0, scores.shape[1], KEY_TILE):
        part = slice(start, min(start + KEY_TILE, scores.shape[1]))
        before, most = most, np.fmax(most, np.fmax.reduce(scores[:, part], 1, keepdims=True))
        base = np.where(np.isneginf(most), np.float32(0), most)
        e = exp(scores[:, part] - base)
        shrink = exp(before - base)
        total = total * shrink + _lane_sum(e)
        p, p_scale = quantize(e * v_scale[part], PROBABILITY_FORMAT)
        ones = np.ones((v.shape[1], group_count(p.shape[1], group)), np.float32)
        no_bias = np.zeros(v.shape[1], np.float32)
        tile = linear(p, p_scale, v[part].T.astype(np.float32), ones, no_bias, group)
        y = y * shrink + tile
    weighted: FloatArray = y / total
    return weighted


def _lane_sum(e: FloatArray) -> FloatArray:
    """Sums [S, 1] of rows [S, L]: partial sums in lanes, folded in halves."""
    padded = np.pad(e, ((0, 0), (0, -e.shape[1] % SOFTMAX_LANES)))
    lanes = np.zeros((e.shape[0], SOFTMAX_LANES), np.float32)
    for start in range(0, padded.shape[1], SOFTMAX_LANES):
        lanes = lanes + padded[:, start : start + SOFTMAX_LANES]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes
