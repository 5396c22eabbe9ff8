"""The one scale of a layer's activations, from rows that it received."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fp4dit_onnx.calibration.grid import quantize_static, round_to_grid
from fp4dit_onnx.calibration.moments import Rows
from fp4dit_onnx.numbers.formats import FloatFormat
from fp4dit_onnx.numbers.numerics import SMALLEST_AMAX

__all__ = ["best_largest", "quantiles", "ranges_of_inputs"]


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


def ranges_of_inputs(rows: Rows, fmt: FloatFormat, shares: Sequence[float]) -> torch.Tensor:
    """The range of each input under which its values err least, of the shares that it may hold.

    Args:
        rows: [R, halves, K].
        fmt: the element format.
        shares: of an input's magnitudes that a range holds, each in (0, 1].

    Returns:
        Float32 [K], positive: of an input that is always 0 the largest of all, which leaves its weights
        as they are next to the others'.
    """
    values = rows.halves.flatten(0, 1)
    ordered = values.abs().sort(dim=0).values
    count = len(ordered)
    best, least = ordered[-1], torch.full((values.shape[1],), torch.inf)
    for share in shares:
        largest = ordered[min(count, max(1, round(share * count))) - 1]
        unit = torch.where(largest > 0, largest, 1.0)
        limit = torch.full_like(unit, fmt.max_integer)
        q = round_to_grid(values.clamp(-unit, unit) * (limit / unit), fmt)
        error = (q * (unit / limit) - values).square().mean(dim=0)
        error = torch.where(largest > 0, error, torch.inf)
        best = torch.where(error < least, largest, best)
        least = torch.minimum(error, least)
    floor = best.max().clamp(min=float(SMALLEST_AMAX))
    return torch.where(best >= float(SMALLEST_AMAX), best, floor)
