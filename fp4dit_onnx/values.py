"""Numbers that users give: whole or real, and in their range."""

from __future__ import annotations

import math
import numbers
import re
from typing import Any

from fp4dit_onnx.errors import UsageError

__all__ = ["LARGEST_SEED", "checked_seed", "real", "seconds_of", "shown", "whole"]

_SECONDS = {"s": 1, "m": 60, "h": 3600}
LARGEST_SEED = 2**64 - 1
"""What a seed of the C++ example and of torch's generators holds."""


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` as an int.

    Args:
        name: what messages call it, such as ``steps``.
        value: an int of Python or numpy.
        least: the smallest that is accepted.
        most: the largest, None for no limit.

    Raises:
        UsageError: no whole number (True is none), or out of range.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if is_whole and value >= least and (most is None or value <= most):
        return int(value)
    span = f"from {least}" + ("" if most is None else f" to {most}")
    raise UsageError(f"{name} = {shown(value)}: expected a whole number {span}")


def real(name: str, value: Any, least: float, most: float | None = None) -> float:
    """`value` as a float, which is finite; see `whole`.

    Raises:
        UsageError: no number, NaN, an infinity, or out of range.
    """
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_real and least <= value < math.inf and (most is None or value <= most):
        return float(value)
    span = f"from {least:.15g}" + ("" if most is None else f" to {most:.15g}")
    raise UsageError(f"{name} = {shown(value)}: expected a number {span}")


def checked_seed(value: Any) -> int:
    """A seed of noise, 0 .. `LARGEST_SEED`.

    Raises:
        UsageError: anything else.
    """
    return whole("seed", value, 0, LARGEST_SEED)


def seconds_of(text: str) -> float:
    """A duration such as ``90s``, ``30m`` or ``1.5h``, in seconds.

    Raises:
        UsageError: it is written otherwise, or is less than a second.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smh])", text.strip(), re.ASCII)
    if found is None:
        raise UsageError(f"time {shown(text)}: expected a number and s, m or h, such as 30m")
    return real("time in seconds", float(found[1]) * _SECONDS[found[2]], 1)


def shown(value: Any) -> str:
    """`value` in a message, short whatever it is."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print 5,000 digits
        return f"a number of {value.bit_length()} bits"
    text = str(value) if isinstance(value, numbers.Number) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
