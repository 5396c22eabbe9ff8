"""FpScale: multipliers of 4 bits and a float per channel to the scales of a weight's groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fp4dit_onnx.numbers.scale_formats import multipliers_of
from fp4dit_onnx.ops.operator import Array, Attributes, Operator

__all__ = ["SCALE", "scale_attributes"]


def _reference(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    packed, channel_scale = inputs
    return (multipliers_of(packed, given["groups"]) * channel_scale.astype(np.float32)[:, None],)


SCALE = Operator(
    name="FpScale",
    text="""
FpScale <groups> (multipliers, channel_scale) => (scale)
{
    count = Constant <value_int: int = @groups> ()
    first = Constant <value = int64[1] {0}> ()
    last = Constant <value = int64[1] {-1}> ()
    rows_by_rest = Constant <value = int64[2] {0, -1}> ()
    divisor_wide = Constant <value = int64[2] {1, 16}> ()
    mask_wide = Constant <value = int64 {15}> ()
    divisor = Cast <to = 6> (divisor_wide)
    mask = Cast <to = 6> (mask_wide)
    byte = Cast <to = 6> (multipliers)
    bytes = Unsqueeze (byte, last)
    shifted = Div (bytes, divisor)
    fields = BitwiseAnd (shifted, mask)
    padded = Reshape (fields, rows_by_rest)
    end = Unsqueeze (count, first)
    integers = Slice (padded, first, end, last)
    multiplier = Cast <to = 1> (integers)
    channel = Cast <to = 1> (channel_scale)
    column = Unsqueeze (channel, last)
    scale = Mul (multiplier, column)
}
""",
    doc="Scales of a weight's groups: a multiplier of 4 bits for each, two per byte, the even group in "
    "the low nibble, times the channel's scale.",
    results=(np.float32,),
    reference=_reference,
    caption=lambda given, size: f"Scales of a weight, {size}: {given['groups']} per channel",
    role="scale",
    parts={"multipliers": 0, "channel_scale": 1},
)


def scale_attributes(groups: int) -> dict[str, Any]:
    """Attributes of FpScale: scales per channel."""
    return {"groups": groups}
