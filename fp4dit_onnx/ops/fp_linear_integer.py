"""FpLinearInteger and FpLinearSigns: a weight's group scales are integers times a float per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FloatArray, FloatFormat
from fp4dit_onnx.numbers.numerics import group_count
from fp4dit_onnx.numbers.scale_formats import MULTIPLIED, multipliers_of
from fp4dit_onnx.ops.fp_linear import LINEAR, caption, linear_attributes, linear_bound, spec_of
from fp4dit_onnx.ops.fp_unpack import unpacked
from fp4dit_onnx.ops.operator import Array, Attributes

__all__ = ["LINEAR_INTEGER", "LINEAR_SIGNS", "linear_integer_attributes"]


def _weight(given: Attributes, codes: Array, multipliers: Array) -> FloatArray:
    """Grid integers times their groups' multipliers, float32 [N, K]: integers."""
    grid = unpacked(codes, given, "weight_format")
    times = multipliers_of(multipliers, given["groups"])
    return numerics.dequantize(grid, times, given["group_size"])


def _reference(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    q, scale, codes, multipliers, channel_scale, bias = inputs
    weight = _weight(given, codes, multipliers)
    of_row = given["act_group_size"]
    return (numerics.linear_integer(q, scale, weight, channel_scale, bias, of_row),)


def _bound(given: Attributes, inputs: Sequence[Array]) -> npt.NDArray[np.float64]:
    """None but 0 with one scale per row: sums are exact there, whatever their order."""
    q, scale, codes, multipliers, channel_scale, bias = inputs
    if scale.shape[-1] == 1:
        return np.zeros(1)
    value = _weight(given, codes, multipliers) * channel_scale.astype(np.float32)[:, None]
    return linear_bound(given, q, scale, value, bias)


_UNPACK = """com.fp4dit.FpUnpack
        <format: string = @weight_format, bits: int = @bits, grid: floats = @grid, K: int = @K>"""
_UNPACK_SIGNS = """com.fp4dit.FpUnpackSigns
        <format: string = @weight_format, bits: int = @bits, grid: floats = @grid, K: int = @K,
         wide: int = @wide, signs: int = @signs>"""

# A row's scales become shares of their largest, which with one scale are 1: values are integers then,
# and float64 adds their products exactly. (MatMulInteger saturates on processors without VNNI.)
LINEAR_INTEGER = replace(
    LINEAR,
    name="FpLinearInteger",
    text="""
FpLinearInteger
    <act_format, weight_format, group_size, act_group_size, K, bits, grid, groups>
    (q, scale, codes, multipliers, channel_scale, bias) => (y)
{
    none = Constant <value = float {0.0}> ()
    one = Constant <value = float {1.0}> ()
    last = Constant <value = int64[1] {-1}> ()
    integers = com.fp4dit.FpUnpack
        <format: string = @weight_format, bits: int = @bits, grid: floats = @grid, K: int = @K> (codes)
    channels = Shape (channel_scale)
    ones = Expand (one, channels)
    times = com.fp4dit.FpScale <groups: int = @groups> (multipliers, ones)
    weight = com.fp4dit.FpDequantize
        <format: string = @weight_format, group_size: int = @group_size> (integers, times)
    columns = Transpose <perm = [1, 0]> (weight)
    row_scale = ReduceMax <keepdims = 1> (scale, last)
    is_live = Greater (row_scale, none)
    unit = Where (is_live, row_scale, one)
    share = Div (scale, unit)
    value = com.fp4dit.FpDequantize
        <format: string = @act_format, group_size: int = @act_group_size> (q, share)
    columns_wide = Cast <to = 11> (columns)
    value_wide = Cast <to = 11> (value)
    sum_wide = MatMul (value_wide, columns_wide)
    sum = Cast <to = 1> (sum_wide)
    channel = Cast <to = 1> (channel_scale)
    of_channel = Mul (sum, channel)
    scaled = Mul (of_channel, unit)
    y = Add (scaled, bias)
}
""",
    doc="FpLinear of packed weights whose scales are multipliers of 4 bits, one for each output channel "
    "and group_size inputs, times one float per channel: a row's products are summed as integers.",
    reference=_reference,
    bound=_bound,
    caption=lambda given, size: f"{caption(given, size)}, integer scales",
    parts={"codes": 2, "multipliers": 3, "channel_scale": 4},
    spec=lambda given: spec_of(given, MULTIPLIED),
)

LINEAR_SIGNS = replace(
    LINEAR_INTEGER,
    name="FpLinearSigns",
    text=LINEAR_INTEGER.text.replace("FpLinearInteger", "FpLinearSigns")
    .replace("grid, groups>", "grid, groups, wide, signs>")
    .replace(_UNPACK, _UNPACK_SIGNS),
    doc="FpLinearInteger of a weight whose inputs after the first wide have a sign each in place of a "
    "code: the grid integers 1 and -1.",
    caption=lambda given, size: f"{LINEAR_INTEGER.caption(given, size)}, {given['signs']} signs",
)


def linear_integer_attributes(
    act: FloatFormat,
    weight: FloatFormat,
    k: int,
    group_size: int,
    act_group_size: int | None = None,
) -> dict[str, Any]:
    """Attributes of FpLinearInteger: those of FpLinear, and scales per channel."""
    given = linear_attributes(act, weight, k, group_size, act_group_size)
    return {**given, "groups": group_count(k, group_size)}
