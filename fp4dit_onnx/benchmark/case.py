"""What is computed: the protocol of a case, and what all cases share."""

from __future__ import annotations

import math
import re
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.compare import sqnr_db

__all__ = ["Array", "Case", "checked_sqnr", "parse_sizes", "sample_rows"]

Array = npt.NDArray[Any]

CHECKED_ROWS = 256
"""Rows of a result compared with the float64 reference: enough for a mean, quick to compute."""


class Case(Protocol):
    """One computation that backends carry out."""

    @property
    def kind(self) -> str:
        """``linear``, ``attention`` or ``step``."""
        ...

    @property
    def name(self) -> str:
        """Its sizes, as tables show them."""
        ...

    @property
    def operations(self) -> float | None:
        """Multiplications and additions; None where they are not counted."""
        ...

    @property
    def product(self) -> str | None:
        """What ours multiplies, one of `library.DOT_KINDS`; None where it is of several kinds."""
        ...

    def sqnr(self, result: Array) -> float | None:
        """How near `result` is to the reference, in dB; None if equal or without a reference.

        Raises:
            ValueError: a result of another shape, or numbers that are not finite.
        """
        ...


def parse_sizes(text: str, form: str) -> tuple[int, ...]:
    """The sizes written in `text`, such as ``1024x1152x4608`` for the form ``MxKxN``.

    Raises:
        UsageError: other than as many positive integers as the form has letters.
    """
    letters = form.split("x")
    pattern = "x".join(r"([1-9][0-9]{0,8})" for _ in letters)
    match = re.fullmatch(pattern, text.strip().lower())
    if match is None:
        example = {"MxKxN": "1024x1152x4608"}.get(form, "2x1024x16x72")
        raise UsageError(
            f"sizes {text!r}: expected {form}, {len(letters)} positive integers such as {example}"
        )
    return tuple(int(size) for size in match.groups())


def sample_rows(count: int) -> npt.NDArray[np.int64]:
    """Indices of at most `CHECKED_ROWS` of `count` rows, evenly spread, first and last included."""
    return np.linspace(0, count - 1, min(count, CHECKED_ROWS)).astype(np.int64)


def checked_sqnr(reference: Array, result: Array) -> float | None:
    """SQNR of `result` in dB; None where it equals the reference.

    Raises:
        ValueError: shapes differ, or numbers are not finite.
    """
    if reference.shape != result.shape:
        raise ValueError(f"a result of shape {result.shape}, expected {reference.shape}")
    if not np.isfinite(result).all():
        raise ValueError("a result with numbers that are not finite")
    found = sqnr_db(reference, result)
    return found if math.isfinite(found) else None
