"""Hadamard rotations: the definition of FpHadamard."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import numpy as np

from fp4dit_onnx.numbers.formats import FloatArray

__all__ = ["LARGEST_BLOCK", "hadamard", "hadamard_factors", "hadamard_runs"]

LARGEST_BLOCK = 1024
"""The operator's body adds for as many halvings as this has."""
T = TypeVar("T")
ROOT_HALF = np.sqrt(np.float32(0.5))
"""float32, 0x3f3504f3."""


def hadamard_runs(k: int, block: int) -> tuple[int, ...]:
    """Sizes of the runs that `k` elements are cut into, in order; their sum is `k`.

    As many of `block` as fit, the rest in the largest smaller powers of two, so that each begins at a
    multiple of its size.
    """
    rest = k % block
    smaller = (1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1)
    return (*[block] * (k // block), *smaller)


@functools.cache
def hadamard_factors(k: int, block: int) -> FloatArray:
    """What makes the matrix of each element's run orthonormal, float32 [k].

    For a run of 2^e it is 2^(-e/2): exact where e is even, else float32(sqrt(1/2)) times a power of two.
    """
    found = np.empty(k, np.float32)
    start = 0
    for size in hadamard_runs(k, block):
        half, odd = divmod(size.bit_length() - 1, 2)
        found[start : start + size] = np.float32(2.0**-half) * (ROOT_HALF if odd else 1)
        start += size
    return found


def hadamard(x: T, block: int, library: Any = np) -> T:
    """`x` [..., K] times normalized Hadamard matrices of `block`, a power of two, along the diagonal.

    Butterflies of additions in x's own type, of neighbours first, then one factor: in a run of b
    elements, for h = 1, 2, 4, ..., b / 2 each pair (i, i + h) with bit h of i clear becomes
    (u + v, u - v). `library` is numpy or torch, whose array x is.
    """
    y: Any = x
    (*rows, k), half = y.shape, 1
    while 2 * half <= min(block, k):
        whole = k - k % (2 * half)  # the runs that are long enough come first
        pairs = y[..., :whole].reshape(*rows, whole // (2 * half), 2, half)
        u, v = pairs[..., 0, :], pairs[..., 1, :]
        turned = library.stack([u + v, u - v], -2).reshape(*rows, whole)
        y = turned if whole == k else library.concatenate([turned, y[..., whole:]], -1)
        half *= 2
    where = {} if library is np else {"device": y.device}
    found: T = y * library.asarray(hadamard_factors(k, block), dtype=y.dtype, **where)
    return found
