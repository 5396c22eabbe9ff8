"""FpQuantize, FpQuantizeInt16 and FpQuantizeFloat: activations to grid integers, one scale a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.ops.operator import Array, Attributes, Operator

__all__ = ["QUANTIZE", "QUANTIZE_OPS", "quantize_attributes", "quantize_op"]

# Constants are tensors: of a value_float, graphsurgeon's folding makes a float64.
# floor(log(a) / ln 2) may be one off next to a power of two. Both binades hold that power of two, and
# no tie is near it, so the rounded result is the same. 8.077935669463161e-28 is 2^-90,
# 3.4028235e38 the largest float32.
_TEXT = """
{name} <format, mantissa_bits, max> (x) => (q, scale) {{
    limit = Constant <value_float: float = @max> ()
    mantissa_bits_int = Constant <value_int: int = @mantissa_bits> ()
    zero = Constant <value = float {{0.0}}> ()
    one = Constant <value = float {{1.0}}> ()
    tiny = Constant <value = float {{8.077935669463161e-28}}> ()
    huge = Constant <value = float {{3.4028234663852886e38}}> ()
    per_ln2 = Constant <value = float {{1.4426950408889634}}> ()
    steps = Constant <value = float[32] {{{steps}}}> ()
    last = Constant <value = int64[1] {{-1}}> ()
    nan = Constant <value = float {{0.0}}> ()
    magnitude = Abs (x)
    is_finite = LessOrEqual (magnitude, huge)
    is_not_finite = Not (is_finite)
    poison = Cast <to = 1> (is_not_finite)
    row_poison = ReduceMax <keepdims = 1> (poison, last)
    row_is_finite = Less (row_poison, one)
    finite_magnitude = Where (is_finite, magnitude, zero)
    row_max = ReduceMax <keepdims = 1> (finite_magnitude, last)
    row_is_large = GreaterOrEqual (row_max, tiny)
    live = And (row_is_large, row_is_finite)
    amax = Where (live, row_max, one)
    factor = Div (limit, amax)
    live_x = Where (live, x, zero)
    t = Mul (live_x, factor)
    absolute = Abs (t)
    at_least_one = Max (absolute, one)
    log = Log (at_least_one)
    log2 = Mul (log, per_ln2)
    binade = Floor (log2)
    mantissa_bits_float = Cast <to = 1> (mantissa_bits_int)
    binades_above = Sub (binade, mantissa_bits_float)
    exponent = Max (binades_above, zero)
    index = Cast <to = 7> (exponent)
    step = Gather (steps, index)
    significand = Div (t, step)
    rounded = Round (significand)
    integer = Mul (rounded, step)
    negative_limit = Neg (limit)
    clipped = Clip (integer, negative_limit, limit)
    q = Cast <to = {type}> (clipped)
    quotient = Div (row_max, limit)
    live_scale = Where (row_is_large, quotient, zero)
    scale = Where (row_is_finite, live_scale, nan)
}}
"""


def _text(name: str, dtype: npt.DTypeLike) -> str:
    steps = ", ".join(f"{2.0**i:.1f}" for i in range(32))
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return _TEXT.format(name=name, steps=steps, type=element)


def _reference(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    return numerics.quantize(inputs[0], format_by_name(given["format"]))


def _operator(name: str, dtype: npt.DTypeLike) -> Operator:
    return Operator(
        name=name,
        text=_text(name, dtype),
        doc="Quantizes each row of the last axis: q is the nearest grid integer of the format, ties to "
        "even, scale is the row's largest magnitude by the format's largest integer; x is about "
        "q * scale.",
        results=(dtype, np.float32),
        reference=_reference,
        caption=lambda given, size: f"Activations to {given['format']}, one scale per row",
        role="quantize",
        shared=True,
    )


QUANTIZE = (
    _operator("FpQuantize", np.int8),
    _operator("FpQuantizeInt16", np.int16),
    _operator("FpQuantizeFloat", np.float32),
)
"""One name a result type: ONNX Runtime wants a custom op's output type fixed or equal to an input's."""
QUANTIZE_OPS: dict[str, npt.DTypeLike] = {op.name: op.results[0] for op in QUANTIZE}


def quantize_op(fmt: FloatFormat) -> str:
    """The quantize operator whose result type holds the grid integers of `fmt`."""
    return next(op for op, dtype in QUANTIZE_OPS.items() if dtype == fmt.integer_type)


def quantize_attributes(fmt: FloatFormat) -> dict[str, Any]:
    """Attributes of a quantize operator: the format's name and the two numbers that its body needs."""
    return {"format": fmt.name, "mantissa_bits": fmt.mantissa_bits, "max": fmt.max_integer}
