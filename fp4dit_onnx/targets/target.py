"""The description of a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4dit_onnx.progress import Reporter

__all__ = ["DEFAULT_SUMMARY", "DEFAULT_TARGET", "Target"]

DEFAULT_TARGET = "fp4dit"
DEFAULT_SUMMARY = "our operators and their bodies, opset 21: what export writes"


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
        check: raises UsageError where weights of one of these formats cannot be expressed.
        group_size: of an export for the target that asks for none; None is what others have.
        range: the same of the scales' rule.
        formats: (pattern, format) of weights of 4 bits in place of FP4DiT's; empty keeps these.
        drawable: ONNX Runtime's CPU provider has kernels for what it is made of.
    """

    name: str
    summary: str
    opset: int
    rewrite: Callable[[Path, Path, Path, Reporter], Mapping[str, Any]]
    check: Callable[[Iterable[str]], None] = lambda formats: None
    group_size: int | None = None
    range: str | None = None
    formats: tuple[tuple[str, str], ...] = ()
    drawable: bool = True
