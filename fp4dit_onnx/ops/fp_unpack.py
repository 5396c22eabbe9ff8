"""FpUnpack, FpUnpackSigns: packed codes of a weight to grid integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.ops.operator import Array, Attributes, Operator

__all__ = ["UNPACK", "UNPACK_SIGNS", "sign_attributes", "unpack_attributes", "unpacked"]

# It divides where it could shift to the right: OpenVINO 2026.4 rounds such shifts. It subtracts in
# int64: ONNX Runtime before 1.21 cannot in uint64.
_TEXT = """
FpUnpack <format, bits, grid, K> (codes) => (q) {
    table = Constant <value_floats: floats = @grid> ()
    width = Constant <value_int: int = @bits> ()
    columns = Constant <value_int: int = @K> ()
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    eight = Constant <value = int64 {8}> ()
    first = Constant <value = int64[1] {0}> ()
    last = Constant <value = int64[1] {-1}> ()
    rows_by_rest = Constant <value = int64[2] {0, -1}> ()
    one_wide = Cast <to = 13> (one)
    width_wide = Cast <to = 13> (width)
    shift = Range (zero, eight, width)
    shift_wide = Cast <to = 13> (shift)
    divisor_wide = BitShift <direction = "LEFT"> (one_wide, shift_wide)
    divisor = Cast <to = 6> (divisor_wide)
    count_wide = BitShift <direction = "LEFT"> (one_wide, width_wide)
    count = Cast <to = 7> (count_wide)
    largest = Sub (count, one)
    mask = Cast <to = 6> (largest)
    byte = Cast <to = 6> (codes)
    bytes = Unsqueeze (byte, last)
    shifted = Div (bytes, divisor)
    fields = BitwiseAnd (shifted, mask)
    rows = Reshape (fields, rows_by_rest)
    end = Unsqueeze (columns, first)
    index = Slice (rows, first, end, last)
    q = Gather (table, index)
}
"""


def unpacked(codes: Array, given: Attributes, fmt: str = "format") -> Array:
    """Grid integers float32 [N, K] of packed codes of the format that the attribute `fmt` names."""
    form = format_by_name(given[fmt])
    return numerics.decode(
        numerics.unpack(codes, given["K"], form.storage_bits, given.get("wide")), form
    )


def _reference(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    return (unpacked(inputs[0], given),)


UNPACK = Operator(
    name="FpUnpack",
    text=_TEXT,
    doc="Codes to grid integers: two 4-bit codes per byte, the even element in the low nibble.",
    results=(np.float32,),
    reference=_reference,
    caption=lambda given, size: f"Weight, {size}: packed {given['format']}",
    role="unpack",
    parts={"codes": 0},
    weight_format="format",
)

UNPACK_SIGNS = replace(
    UNPACK,
    name="FpUnpackSigns",
    text="""
FpUnpackSigns <format, bits, grid, K, wide, signs> (codes) => (q) {
    count = Constant <value_int: int = @wide> ()
    last = Constant <value = int64[1] {-1}> ()
    first = Constant <value = int64[1] {0}> ()
    two = Constant <value = int64[1] {2}> ()
    most = Constant <value = int64[1] {2147483647}> ()
    none = Constant <value = float {0.0}> ()
    plus = Constant <value = float {1.0}> ()
    minus = Constant <value = float {-1.0}> ()
    columns = Constant <value_int: int = @signs> ()
    rows_by_rest = Constant <value = int64[2] {0, -1}> ()
    divisor_wide = Constant <value = int64[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
    one_wide = Constant <value = int64 {1}> ()
    divisor = Cast <to = 6> (divisor_wide)
    mask = Cast <to = 6> (one_wide)
    place = Unsqueeze (count, first)
    half = Div (place, two)
    narrow = Slice (codes, first, half, last)
    wide_q = com.fp4dit.FpUnpack
        <format: string = @format, bits: int = @bits, grid: floats = @grid, K: int = @wide> (narrow)
    tail = Slice (codes, half, most, last)
    byte = Cast <to = 6> (tail)
    bytes = Unsqueeze (byte, last)
    shifted = Div (bytes, divisor)
    fields = BitwiseAnd (shifted, mask)
    padded = Reshape (fields, rows_by_rest)
    end = Unsqueeze (columns, first)
    bit_int = Slice (padded, first, end, last)
    bit = Cast <to = 1> (bit_int)
    negative = Greater (bit, none)
    sign_q = Where (negative, minus, plus)
    q = Concat <axis = 1> (wide_q, sign_q)
}
""",
    doc="Codes to grid integers: the first wide inputs as FpUnpack has them, of those after them a bit "
    "each, 0 for 1 and 1 for -1, the first in the lowest bit.",
    caption=lambda given, size: (
        f"Weight, {size}: packed {given['format']}, and {given['signs']} signs"
    ),
)


def sign_attributes(k: int, wide: int) -> dict[str, Any]:
    """Attributes that a weight of `k` inputs has more, where those after `wide` have a sign alone."""
    return {"wide": wide, "signs": k - wide}


def unpack_attributes(fmt: FloatFormat, k: int) -> dict[str, Any]:
    """Attributes of FpUnpack; `grid` is the grid integer of every code (0 for codes of no number)."""
    grid = [float(v) for v in np.nan_to_num(fmt.grid, nan=0.0)]
    return {"format": fmt.name, "bits": fmt.storage_bits, "grid": grid, "K": k}
