"""The one scale of a layer's activations, from rows that it received."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fp4dit_onnx.calibration.grid import quantize_static
from fp4dit_onnx.calibration.moments import Rows
from fp4dit_onnx.numbers.formats import FloatFormat
from fp4dit_onnx.numbers.numerics import SMALLEST_AMAX

__all__ = ["best_largest", "quantiles"]


def quantiles(values: torch.Tensor, shares: Sequence[float]) -> list[float]:
    """The magnitudes that `shares` (each in (0, 1]) of `values` do not exceed, and no larger ones."""
    ordered = values.abs().flatten().sort().values
    places = [min(len(ordered), max(1, round(share * len(ordered)))) - 1 for share in shares]
    return [float(ordered[place]) for place in places]


def best_largest(rows: Rows, fmt: FloatFormat, candidates: Iterable[float]) -> float:
    """Of `candidates` the largest magnitude under which the rows err least, the first of equals.

    What is too small for a scale counts as the smallest that is not: a layer may receive zeros.
    """
    given = [max(one, float(SMALLEST_AMAX)) for one in candidates]
    return min(given, key=lambda largest: rounding_error(rows, fmt, largest))


def rounding_error(rows: Rows, fmt: FloatFormat, largest: float) -> float:
    """Weighted mean square of what quantizing the rows [R, halves, K] under one scale changes."""
    q, scale = quantize_static(rows.halves, fmt, largest)
    return rows.error(q * scale - rows.halves)
