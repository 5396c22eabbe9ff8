"""Rounding methods as data: names that users type, and their settings. No torch here.

The function that carries a method out is joined to its type in `calibration.methods`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fp4dit_onnx.errors import UsageError

__all__ = ["METHODS", "Method", "RoundToNearest", "method_by_name"]


@dataclass(frozen=True)
class RoundToNearest:
    """Nearest grid value under absmax group scales; looks at no inputs."""


Method = RoundToNearest
"""The union of all methods."""

METHODS: dict[str, Method] = {"rtn": RoundToNearest()}


def method_by_name(name: str) -> Method:
    """The method called `name`.

    Raises:
        UsageError: no such method; the message lists the known ones.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name]
