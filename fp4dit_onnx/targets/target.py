"""The description of a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.manifest import DEFAULT_TARGET
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE
from fp4dit_onnx.spec.spec import DEFAULT_GROUP_SIZE
from fp4dit_onnx.system.progress import Reporter

__all__ = ["DEFAULT_TARGET", "FP4DIT", "Reference", "Rewrite", "Target"]

Rewrite = Callable[[Path, Path, Path, Reporter], Mapping[str, Any]]
Array = npt.NDArray[Any]
Reference = Callable[
    [onnx.NodeProto, Sequence[Array]], tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
]
"""From a node and its inputs to its output and how far a runtime's may lie from it, [..., N]."""


@dataclass(frozen=True)
class Target:
    """A form of a bundle's quantized graphs.

    Attributes:
        name: of ``--target``.
        summary: a few words for people.
        opset: of the default domain.
        rewrite: writes ``model.onnx`` and its data into the second folder, of the quantized model in
            the first; the bundle that it belongs to is the third argument. Gives what the manifest
            says of the model. None is the form that `export` writes.
        linear: the form of one linear of x in [-1, 1], to try runtimes with.
        check: raises UsageError where weights of one of these formats cannot be expressed.
        group_size: of an export for the target that asks for none.
        scale: the same of the format of weights' scales.
        formats: (pattern, format) of weights of 4 bits in place of FP4DiT's; empty keeps these.
        drawable: ONNX Runtime's CPU provider has kernels for what it is made of.
        references: (domain, operator) of linears by one operator of others -> its numpy reference;
            they read the tensor ``LAYER.weight``. `verify` checks such bundles.
    """

    name: str
    summary: str
    opset: int
    rewrite: Rewrite | None = None
    linear: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda model: model
    check: Callable[[Iterable[str]], None] = lambda formats: None
    group_size: int = DEFAULT_GROUP_SIZE
    scale: str = DEFAULT_SCALE
    formats: tuple[tuple[str, str], ...] = ()
    drawable: bool = True
    references: Mapping[tuple[str, str], Reference] = field(default_factory=dict)


FP4DIT = Target(
    DEFAULT_TARGET, "our operators and their bodies, opset 21: what export writes", ops.OPSET
)
