"""FpDequantize: grid integers times the scale of their group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FloatFormat
from fp4dit_onnx.ops.operator import Array, Attributes, Operator

__all__ = ["DEQUANTIZE", "dequantize_attributes"]

_TEXT = """
FpDequantize <format, group_size> (q, scale) => (y) {
    group = Constant <value_int: int = @group_size> ()
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    last_dim = Shape <start = -1> (q)
    size = Squeeze (last_dim)
    element = Range (zero, size, one)
    index = Div (element, group)
    scale_float = Cast <to = 1> (scale)
    step = Gather <axis = -1> (scale_float, index)
    integer = Cast <to = 1> (q)
    y = Mul (integer, step)
}
"""


def _reference(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    q, scale = inputs
    return (numerics.dequantize(q, scale, given["group_size"]),)


def _caption(given: Attributes, size: str | None) -> str:
    if size:
        return f"Weight, {size}: {given['format']} in groups of {given['group_size']}"
    return f"Activations in {given['format']}, a scale per {given['group_size']} inputs"


DEQUANTIZE = Operator(
    name="FpDequantize",
    text=_TEXT,
    doc="y = q * scale, one scale for every group_size elements of the last axis.",
    results=(np.float32,),
    reference=_reference,
    caption=_caption,
    role="dequantize",
    parts={"scale": 1},
)


def dequantize_attributes(fmt: FloatFormat, group_size: int) -> dict[str, Any]:
    """Attributes of FpDequantize; a scale per row is one group as long as the row."""
    return {"format": fmt.name, "group_size": group_size}
