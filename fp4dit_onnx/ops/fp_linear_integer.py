"""FpLinearInteger: FpLinear whose group scales are small integers times a float per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FloatArray, FloatFormat, format_by_name
from fp4dit_onnx.numbers.numerics import group_count
from fp4dit_onnx.numbers.scale_formats import MULTIPLIED
from fp4dit_onnx.ops.fp_linear import LINEAR, caption, linear_attributes, linear_bound, spec_of
from fp4dit_onnx.ops.fp_scale import multipliers_of
from fp4dit_onnx.ops.fp_unpack import unpacked
from fp4dit_onnx.ops.operator import Array, Attributes

__all__ = ["LINEAR_INTEGER", "linear_integer_attributes"]


def _weight(given: Attributes, codes: Array, multipliers: Array) -> FloatArray:
    """Grid integers times their groups' multipliers, float32 [N, K]: integers."""
    grid = unpacked(codes, given["K"], format_by_name(given["weight_format"]))
    times = multipliers_of(multipliers, given["groups"])
    return numerics.dequantize(grid, times, given["group_size"])


def _reference(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    q, scale, codes, multipliers, channel_scale, bias = inputs
    weight, k = _weight(given, codes, multipliers), given["K"]
    channels = channel_scale[:, None]
    return (numerics.linear(q, scale, weight, channels, bias, k, given["act_group_size"]),)


def _bound(given: Attributes, inputs: Sequence[Array]) -> npt.NDArray[np.float64]:
    q, scale, codes, multipliers, channel_scale, bias = inputs
    value = _weight(given, codes, multipliers) * channel_scale.astype(np.float32)[:, None]
    return linear_bound(given, q, scale, value, bias)


LINEAR_INTEGER = replace(
    LINEAR,
    name="FpLinearInteger",
    text="""
FpLinearInteger
    <act_format, weight_format, group_size, act_group_size, K, bits, grid, groups>
    (q, scale, codes, multipliers, channel_scale, bias) => (y)
{
    weight_scale = com.fp4dit.FpScale <groups: int = @groups> (multipliers, channel_scale)
    y = com.fp4dit.FpLinear
        <act_format: string = @act_format, weight_format: string = @weight_format,
         group_size: int = @group_size, act_group_size: int = @act_group_size, K: int = @K,
         bits: int = @bits, grid: floats = @grid> (q, scale, codes, weight_scale, bias)
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
