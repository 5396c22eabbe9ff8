"""Weights of a quantized layer in ONNX's small types: the same values, other codes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FloatArray, FloatFormat

__all__ = ["WeightType", "block_scales", "stored_weight", "weight_type"]


@dataclass(frozen=True)
class WeightType:
    """A type of ONNX that weights may have.

    Attributes:
        name: of `onnx.TensorProto`'s types.
        dtype: the same in numpy.
        bits: that an element takes.
        integer: holds grid integers rather than values.
    """

    name: str
    dtype: npt.DTypeLike
    bits: int
    integer: bool

    @property
    def data_type(self) -> int:
        """The number of `onnx.TensorProto`'s type."""
        return int(onnx.TensorProto.DataType.Value(self.name))

    def step(self, fmt: FloatFormat) -> np.float32:
        """What a scale of grid integers of `fmt` is multiplied by; a power of two."""
        return np.float32(1 if self.integer else fmt.unit)

    def codes(self, fmt: FloatFormat) -> npt.NDArray[np.uint8] | None:
        """The element, as bits of a byte, for every code of `fmt`; None where one has none."""
        values = np.nan_to_num(fmt.grid, nan=0.0).astype(np.float32) / self.step(fmt)
        with np.errstate(over="ignore", invalid="ignore"):
            cast = values.astype(self.dtype)
        if not np.array_equal(cast.astype(np.float32), values):
            return None
        return cast.view(np.uint8) & np.uint8((1 << self.bits) - 1)


WEIGHT_TYPES = (
    WeightType("FLOAT4E2M1", ml_dtypes.float4_e2m1fn, 4, integer=False),
    WeightType("INT4", ml_dtypes.int4, 4, integer=True),
    WeightType("FLOAT8E4M3FN", ml_dtypes.float8_e4m3fn, 8, integer=False),
    WeightType("INT8", np.int8, 8, integer=True),
)
"""A layer takes the first that holds every value of its format."""


def weight_type(fmt: FloatFormat) -> WeightType:
    """The type that holds every value of `fmt`.

    Raises:
        UsageError: none does.
    """
    for kind in WEIGHT_TYPES:
        if kind.codes(fmt) is not None:
            return kind
    known = ", ".join(kind.name for kind in WEIGHT_TYPES)
    raise UsageError(
        f"weights of {fmt.name}: expected a format whose values one of {known} holds; export again "
        "with another --weight-format"
    )


def stored_weight(
    packed: npt.NDArray[np.uint8],
    scale: FloatArray,
    k: int,
    fmt: FloatFormat,
    group: int,
    wide: int | None = None,
) -> npt.NDArray[np.uint8]:
    """The bytes, uint8 [bytes], of a weight [N, k] in its `weight_type`; 0 where the scale is.

    Args:
        packed: codes of `fmt`, as `numerics.pack` made them.
        scale: of each group, [N, groups].
        k: inputs.
        fmt: of the weight.
        group: inputs that share a scale.
        wide: of them, how many have codes; see `numerics.pack`.
    """
    kind = weight_type(fmt)
    table = kind.codes(fmt)
    assert table is not None
    codes = numerics.unpack(packed, k, fmt.storage_bits, wide)
    live = numerics.expand_groups(scale, k, group) > 0
    elements = np.where(live, table[codes], np.uint8(0))
    return numerics.pack(elements.reshape(1, -1), kind.bits).reshape(-1)


def block_scales(scale: FloatArray, k: int, group: int) -> tuple[FloatArray, int]:
    """Scales [N, k / block] and a block that divides `k`, of scales [N, groups] of a weight [N, k].

    OpenVINO takes no short block at the end: a group of several blocks repeats its scale. One group
    is a scale per channel, [N]. TensorRT takes no scale of 0: groups of zeros get the largest.
    """
    scale = np.where(scale > 0, scale, scale.max(initial=0) or np.float32(1))
    if scale.shape[1] == 1:
        return scale[:, 0], k
    block = math.gcd(k, group)
    return scale[:, np.arange(0, k, block) // group], block
