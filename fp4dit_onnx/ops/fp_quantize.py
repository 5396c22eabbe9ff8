"""FpQuantize, FpQuantizeInt16 and FpQuantizeFloat: activations to grid integers and scales.

FpQuantizeStatic and its like are the same under a scale that is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.ops.operator import WHOLE_ROW, Array, Attributes, Operator
from fp4dit_onnx.spec.spec import TensorSpec

__all__ = [
    "QUANTIZE",
    "QUANTIZE_OPS",
    "STATIC",
    "caption",
    "quantize_attributes",
    "quantize_op",
    "quantizer_of",
    "static_attributes",
]

# Constants are tensors: of a value_float, graphsurgeon's folding makes a float64.
# floor(log(a) / ln 2) may be one off next to a power of two. Both binades hold that power of two, and
# no tie is near it, so the rounded result is the same. 8.077935669463161e-28 is 2^-90,
# 3.4028235e38 the largest float32.
_ROUNDING = """\
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
    negative_limits = Neg (limits)
    not_below = Max (integer, negative_limits)
    clipped = Min (not_below, limits)
"""
"""Of `t` to the grid, saturating at `limits`."""

_TEXT = """
{name} <format, mantissa_bits, max, group_size, candidates> (x) => (q, scale) {{
    group = Constant <value_int: int = @group_size> ()
    candidate = Constant <value_floats: floats = @candidates> ()
    mantissa_bits_int = Constant <value_int: int = @mantissa_bits> ()
    zero = Constant <value = float {{0.0}}> ()
    one = Constant <value = float {{1.0}}> ()
    tiny = Constant <value = float {{8.077935669463161e-28}}> ()
    huge = Constant <value = float {{3.4028234663852886e38}}> ()
    per_ln2 = Constant <value = float {{1.4426950408889634}}> ()
    fineness = Constant <value = float {{64.0}}> ()
    steps = Constant <value = float[32] {{{steps}}}> ()
    last = Constant <value = int64[1] {{-1}}> ()
    last_but_one = Constant <value = int64[1] {{-2}}> ()
    first = Constant <value = int64[1] {{0}}> ()
    single = Constant <value = int64[1] {{1}}> ()
    start = Constant <value = int64 {{0}}> ()
    stride = Constant <value = int64 {{1}}> ()
    nan = Constant <value = float {{0.0}}> ()
    rows = Shape <start = 0, end = -1> (x)
    columns = Shape <start = -1> (x)
    width = Min (group, columns)
    beyond = Sub (width, single)
    columns_up = Add (columns, beyond)
    groups = Div (columns_up, width)
    padded_columns = Mul (groups, width)
    missing = Sub (padded_columns, columns)
    pads = Concat <axis = 0> (first, missing)
    padded = Pad (x, pads, zero, last)
    grouped_shape = Concat <axis = 0> (rows, groups, single, width)
    grouped = Reshape (padded, grouped_shape)
    magnitude = Abs (grouped)
    is_finite = LessOrEqual (magnitude, huge)
    is_not_finite = Not (is_finite)
    poison = Cast <to = 1> (is_not_finite)
    group_poison = ReduceMax <keepdims = 1> (poison, last)
    group_is_finite = Less (group_poison, one)
    finite_magnitude = Where (is_finite, magnitude, zero)
    group_max = ReduceMax <keepdims = 1> (finite_magnitude, last)
    group_is_large = GreaterOrEqual (group_max, tiny)
    live = And (group_is_large, group_is_finite)
    amax = Where (live, group_max, one)
    limits = Unsqueeze (candidate, last)
    factor = Div (limits, amax)
    live_x = Where (live, grouped, zero)
    t = Mul (live_x, factor)
{rounding}    difference = Sub (t, clipped)
    fine = Mul (difference, fineness)
    units = Round (fine)
    squares = ReduceSumSquare <keepdims = 1> (units, last)
    squares_wide = Cast <to = 11> (squares)
    limits_wide = Cast <to = 11> (limits)
    area = Mul (limits_wide, limits_wide)
    error = Div (squares_wide, area)
    best = ArgMin <axis = -2, keepdims = 1> (error)
    count = Size (candidate)
    number = Range (start, count, stride)
    numbers = Unsqueeze (number, last)
    is_best = Equal (numbers, best)
    best_integers = Where (is_best, clipped, zero)
    integers = ReduceSum <keepdims = 0> (best_integers, last_but_one)
    flat_shape = Concat <axis = 0> (rows, padded_columns)
    flat = Reshape (integers, flat_shape)
    cut = Slice (flat, first, columns, last)
    shape = Shape (x)
    whole = Reshape (cut, shape)
    q = Cast <to = {type}> (whole)
    best_limits = Where (is_best, limits, zero)
    limit = ReduceSum <keepdims = 1> (best_limits, last_but_one)
    quotient = Div (group_max, limit)
    live_scale = Where (group_is_large, quotient, zero)
    group_scale = Where (group_is_finite, live_scale, nan)
    scale_shape = Concat <axis = 0> (rows, groups)
    scale = Reshape (group_scale, scale_shape)
}}
"""


_STATIC_TEXT = """
{name} <format, mantissa_bits, max, largest> (x) => (q, scale) {{
    mantissa_bits_int = Constant <value_int: int = @mantissa_bits> ()
    limits = Constant <value_float: float = @max> ()
    most = Constant <value_float: float = @largest> ()
    zero = Constant <value = float {{0.0}}> ()
    one = Constant <value = float {{1.0}}> ()
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
    finite_x = Where (row_is_finite, x, zero)
    least = Neg (most)
    not_less = Max (finite_x, least)
    within = Min (not_less, most)
    factor = Div (limits, most)
    t = Mul (within, factor)
{rounding}    q = Cast <to = {type}> (clipped)
    quotient = Div (most, limits)
    scale = Where (row_is_finite, quotient, nan)
}}
"""


def _text(name: str, dtype: npt.DTypeLike, text: str) -> str:
    steps = ", ".join(f"{2.0**i:.1f}" for i in range(32))
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return text.format(name=name, steps=steps, type=element, rounding=_ROUNDING)


def _reference(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    fmt, limits = format_by_name(given["format"]), given["candidates"]
    return numerics.quantize(inputs[0], fmt, given["group_size"], limits[1:])


def caption(given: Attributes, size: str | None) -> str:
    """See `Operator.caption`."""
    shared = (
        "one scale per row"
        if given["group_size"] == WHOLE_ROW
        else f"a scale per {given['group_size']}"
    )
    chosen = f", largest to {' or '.join(f'{c:g}' for c in given['candidates'])}"
    return f"Activations to {given['format']}, {shared}{chosen if len(given['candidates']) > 1 else ''}"


def _operator(name: str, dtype: npt.DTypeLike) -> Operator:
    return Operator(
        name=name,
        text=_text(name, dtype, _TEXT),
        doc="Quantizes each group of group_size elements of the last axis: q is the nearest grid "
        "integer of the format, ties to even, scale is the group's largest magnitude by the format's "
        "largest integer, or by that candidate which errs least; x is about q * scale.",
        results=(dtype, np.float32),
        reference=_reference,
        caption=caption,
        role="quantize",
        shared=True,
    )


def _static(name: str, dtype: npt.DTypeLike) -> Operator:
    return Operator(
        name=name,
        text=_text(name, dtype, _STATIC_TEXT),
        doc="Quantizes under one scale, largest by the format's largest integer: q is the nearest grid "
        "integer, ties to even, and what exceeds largest in magnitude is cut off; x is about q * scale.",
        results=(dtype, np.float32),
        reference=lambda given, inputs: numerics.quantize_static(
            inputs[0], format_by_name(given["format"]), given["largest"]
        ),
        caption=lambda given, size: (
            f"Activations to {given['format']}, one scale, up to {given['largest']:.4g}"
        ),
        role="quantize",
        shared=True,
    )


QUANTIZE = (
    _operator("FpQuantize", np.int8),
    _operator("FpQuantizeInt16", np.int16),
    _operator("FpQuantizeFloat", np.float32),
)
"""One name a result type: ONNX Runtime wants a custom op's output type fixed or equal to an input's."""
STATIC = tuple(
    _static(op.name.replace("Quantize", "QuantizeStatic"), op.results[0]) for op in QUANTIZE
)
"""The same under a scale that is given."""
QUANTIZE_OPS: dict[str, npt.DTypeLike] = {op.name: op.results[0] for op in QUANTIZE}


def quantize_op(fmt: FloatFormat, *, static: bool = False) -> str:
    """The quantize operator whose result type holds the grid integers of `fmt`."""
    records = STATIC if static else QUANTIZE
    return next(op.name for op in records if op.results[0] == fmt.integer_type)


def static_attributes(fmt: FloatFormat, largest: float) -> dict[str, Any]:
    """Attributes of a quantize operator whose scale is given: as `quantize_attributes`.

    Args:
        fmt: the element format.
        largest: magnitude that becomes the format's largest integer, a float32 of at least
            `numerics.SMALLEST_AMAX`.
    """
    return {
        "format": fmt.name,
        "mantissa_bits": fmt.mantissa_bits,
        "max": fmt.max_integer,
        "largest": largest,
    }


def quantize_attributes(
    fmt: FloatFormat, group_size: int = WHOLE_ROW, candidates: Sequence[float] = ()
) -> dict[str, Any]:
    """Attributes of a quantize operator: the format's name and the numbers that its body needs.

    Args:
        fmt: the element format.
        group_size: elements of a row that share a scale.
        candidates: grid integers that a group's largest magnitude may become in place of the format's
            largest, where that errs less: ``[8]`` for e2m1 is four-over-six.
    """
    return {
        "format": fmt.name,
        "mantissa_bits": fmt.mantissa_bits,
        "max": fmt.max_integer,
        "group_size": group_size,
        "candidates": [fmt.max_integer, *map(float, candidates)],
    }


def quantizer_of(spec: TensorSpec) -> tuple[str, dict[str, Any]]:
    """The operator that quantizes activations as `spec` says, and its attributes."""
    fmt = format_by_name(spec.format)
    if spec.largest is not None:
        return quantize_op(fmt, static=True), static_attributes(fmt, spec.largest)
    given = quantize_attributes(fmt, spec.group_size or WHOLE_ROW, spec.candidates)
    return quantize_op(fmt), given
