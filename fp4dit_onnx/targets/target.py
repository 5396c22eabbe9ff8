"""The description of a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DEFAULT_TARGET", "Target"]

DEFAULT_TARGET = "fp4dit"
"""Operators of our domain with their bodies: what `export` writes."""


@dataclass(frozen=True)
class Target:
    """A form of the graphs.

    Attributes:
        name: what people type.
        summary: one line on what the graphs are made of.
        opset: of the standard operators that they need.
        rewrite: writes ``model.onnx`` and its data into the second folder, of the quantized model in
            the first; the bundle that it belongs to is the third argument. Gives what the manifest
            says of the model.
        check: raises UsageError where an export of a form, with weights of these formats, could not
            be rewritten.
        drawable: whether ONNX Runtime on a CPU runs it.
    """

    name: str
    summary: str
    opset: int
    rewrite: Callable[[Path, Path, Path], Mapping[str, Any]]
    drawable: bool
    check: Callable[[str, Iterable[str]], None] = lambda form, formats: None
