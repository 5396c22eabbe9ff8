"""FpLinear: activations times packed weights, plus bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import linear_rounding_bound
from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.ops.fp_unpack import unpack_attributes, unpacked
from fp4dit_onnx.ops.operator import Array, Attributes, Operator
from fp4dit_onnx.spec.spec import LayerSpec

__all__ = ["LINEAR", "linear_attributes"]

ROWS = 32
"""Rows that are compared; float activations take the reference's slow path."""
FLOAT_ROWS = 2

_TEXT = """
FpLinear <act_format, weight_format, group_size, K, bits, grid>
    (q, scale, codes, weight_scale, bias) => (y)
{
    integers = com.fp4dit.FpUnpack
        <format: string = @weight_format, bits: int = @bits, grid: floats = @grid, K: int = @K> (codes)
    weight = com.fp4dit.FpDequantize
        <format: string = @weight_format, group_size: int = @group_size> (integers, weight_scale)
    columns = Transpose <perm = [1, 0]> (weight)
    value = Cast <to = 1> (q)
    product = MatMul (value, columns)
    scaled = Mul (product, scale)
    y = Add (scaled, bias)
}
"""


def _integers(given: Attributes, codes: Array) -> Array:
    return unpacked(codes, given["K"], format_by_name(given["weight_format"]))


def _reference(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    q, scale, codes, weight_scale, bias = inputs
    weight, group = _integers(given, codes), given["group_size"]
    return (numerics.linear(q, scale, weight, weight_scale, bias, group),)


def _bound(given: Attributes, inputs: Sequence[Array]) -> npt.NDArray[np.float64]:
    q, scale, codes, weight_scale, bias = inputs
    value = numerics.dequantize(_integers(given, codes), weight_scale, given["group_size"])
    return linear_rounding_bound(q, scale, value, bias, weight_scale.shape[1])


def _sample(
    given: Attributes, inputs: Sequence[Array], outputs: Sequence[Array]
) -> tuple[Sequence[Array], Sequence[Array]]:
    """Some rows: [..., K] becomes [M, K]."""
    q, scale, *weight = inputs
    rows = q.reshape(-1, given["K"])
    step = max(1, -(-rows.shape[0] // (FLOAT_ROWS if q.dtype == np.float32 else ROWS)))
    scales = scale if scale.shape == (1,) else scale.reshape(-1, scale.shape[-1])[::step]
    (y,) = outputs
    return (rows[::step], scales, *weight), (y.reshape(-1, y.shape[-1])[::step],)


def _caption(given: Attributes, size: str | None) -> str:
    weights = f"{given['weight_format']} in groups of {given['group_size']}"
    return f"Linear {size}: W {weights}, A {given['act_format'] or 'float'}"


def _spec(given: Attributes) -> LayerSpec:
    return LayerSpec.of(given["weight_format"], given["act_format"] or None, given["group_size"])


def _kernel(given: Attributes) -> str:
    if not given["act_format"]:
        return "float"
    types = [format_by_name(given[k]).integer_type for k in ("act_format", "weight_format")]
    return np.result_type(*types).name.replace("float32", "float")


LINEAR = Operator(
    name="FpLinear",
    text=_TEXT,
    doc="y = x W^T + bias for packed weights W [N, K], with one scale for each output channel and "
    "group_size inputs; x is q * scale, or q itself where act_format is empty.",
    results=(np.float32,),
    reference=_reference,
    caption=_caption,
    bound=_bound,
    sample=_sample,
    role="linear",
    parts={"codes": 2, "scale": 3},
    weight_format="weight_format",
    spec=_spec,
    kernel=_kernel,
)


def linear_attributes(
    act: FloatFormat | None, weight: FloatFormat, k: int, group_size: int
) -> dict[str, Any]:
    """Attributes of FpLinear; without `act` the node is weight-only and takes float activations."""
    unpack = unpack_attributes(weight, k)
    return {
        "act_format": act.name if act else "",
        "weight_format": unpack.pop("format"),
        "group_size": group_size,
        **unpack,
    }
