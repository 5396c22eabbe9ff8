"""What ONNX Runtime's own operator MatMulNBits takes and computes.

It multiplies x [..., K] with the transpose of W [N, K], of whose rows each block of inputs has a scale:
``W = (b - 2**(bits - 1)) * scale`` for the bytes b >= 0 of `stored`. Our grid integers are those of
``b - 2**(bits - 1)``, so W has the values of the function bodies.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import UNIT_ROUNDOFF
from fp4dit_onnx.numbers.formats import FloatArray, FloatFormat

__all__ = [
    "BITS",
    "BLOCKS",
    "bits_of",
    "block_of",
    "linear",
    "repeated",
    "rounding_bound",
    "stored",
    "values",
]

BITS = (4, 8)
"""Of an element; every execution provider that has the operator has 4."""
BLOCKS = (16, 32, 64, 128, 256)
"""Inputs that share a scale."""
HALF_ROUNDOFF = 2.0**-11
"""Of float16."""
HALF_SMALLEST = 2.0**-24
"""The distance of float16's values next to 0."""


def bits_of(fmt: FloatFormat) -> int | None:
    """The fewest bits that hold every grid integer of `fmt`; None where none do."""
    grid = fmt.grid[np.isfinite(fmt.grid)]
    whole = bool(np.isfinite(fmt.grid).all() and (grid == np.rint(grid)).all())
    fits = (
        b for b in BITS if whole and -(2 ** (b - 1)) <= grid.min() and grid.max() < 2 ** (b - 1)
    )
    return next(fits, None)


def block_of(k: int, group: int) -> int | None:
    """The block for scales of `group` inputs each of rows of `k`; None where groups end within blocks.

    A group of several blocks repeats its scale. Blocks that divide `k` come first, the largest.
    """
    whole = math.gcd(k, group) if group < k else k
    even = [block for block in BLOCKS if whole % block == 0]
    if even:
        return even[-1]
    return BLOCKS[0] if group >= k or group % BLOCKS[0] == 0 else None


def repeated(scale: FloatArray, k: int, group: int, block: int) -> FloatArray:
    """The scales of blocks, [N, ceil(k / block)], of scales of groups, [N, G]."""
    return scale[:, np.arange(0, k, block) // group]


def stored(
    packed: npt.NDArray[np.uint8], k: int, fmt: FloatFormat, block: int, wide: int | None = None
) -> npt.NDArray[np.uint8]:
    """The bytes, uint8 [N, ceil(k / block), block * bits / 8], of a weight [N, k].

    Args:
        packed: codes of `fmt`, as `numerics.pack` made them.
        k: inputs; where they end within a block, zeros follow.
        fmt: of the weight; one that has `bits_of`.
        block: inputs that share a scale.
        wide: of the inputs, how many have codes; see `numerics.pack`.
    """
    bits = bits_of(fmt)
    assert bits is not None
    zero = 2 ** (bits - 1)
    table = (fmt.grid + zero).astype(np.uint8)
    elements = table[numerics.unpack(packed, k, fmt.storage_bits, wide)]
    blocks = -(-k // block)
    padded = np.pad(elements, ((0, 0), (0, blocks * block - k)), constant_values=zero)
    return numerics.pack(padded, bits).reshape(len(elements), blocks, -1)


def values(data: npt.NDArray[np.uint8], scale: npt.NDArray[Any], k: int, bits: int) -> FloatArray:
    """W, float32 [N, k], of the operator's inputs B and scales, [N, blocks]; the block is B's."""
    elements = numerics.unpack(data.reshape(len(data), -1), data[0].size * 8 // bits, bits)
    integers = elements.astype(np.float32) - np.float32(2 ** (bits - 1))
    rows = scale.astype(np.float32).reshape(len(data), -1)
    return (integers.reshape(*data.shape[:2], -1) * rows[..., None]).reshape(len(data), -1)[:, :k]


def linear(x: npt.NDArray[Any], w: FloatArray) -> npt.NDArray[np.float64]:
    """The product x W^T, float64 [..., N]."""
    return x.astype(np.float64) @ w.astype(np.float64).T


def rounding_bound(x: npt.NDArray[Any], w: FloatArray) -> npt.NDArray[np.float64]:
    """How far a result of the operator may lie from `linear`, [..., N].

    Of each term the weight and the product are rounded, and then K sums in any order, its block's
    scale among them: at most K + 3 roundings a path, off by ``n u / (1 - n u)`` of the sum of
    magnitudes (Higham, lemma 3.1), u float32's. Where x is float16, sums are float32's, while a
    weight and the result may be rounded to float16.
    """
    roundings = (x.shape[-1] + 3) * UNIT_ROUNDOFF
    share, least = roundings / (1 - roundings), 0.0
    magnitude = linear(np.abs(x), np.abs(w))
    if x.dtype == np.float16:
        share = (1 + share) * (1 + HALF_ROUNDOFF) ** 2 - 1
        least = HALF_SMALLEST
    total: npt.NDArray[np.float64] = share * magnitude
    total += least * (1 + np.abs(x.astype(np.float64)).sum(-1, keepdims=True))
    return total
