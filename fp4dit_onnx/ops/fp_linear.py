"""FpLinear: activations times packed weights, plus bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import linear_rounding_bound
from fp4dit_onnx.numbers.formats import FloatArray, FloatFormat, format_by_name
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE
from fp4dit_onnx.ops.fp_unpack import unpack_attributes, unpacked
from fp4dit_onnx.ops.operator import WHOLE_ROW, Array, Attributes, Operator
from fp4dit_onnx.spec.spec import LayerSpec

__all__ = ["LINEAR", "caption", "linear_attributes", "linear_bound", "spec_of"]

ROWS = 32
"""Rows that are compared; float activations take the reference's slow path."""
FLOAT_ROWS = 2

_TEXT = """
FpLinear <act_format, weight_format, group_size, act_group_size, K, bits, grid>
    (q, scale, codes, weight_scale, bias) => (y)
{
    integers = com.fp4dit.FpUnpack
        <format: string = @weight_format, bits: int = @bits, grid: floats = @grid, K: int = @K> (codes)
    weight = com.fp4dit.FpDequantize
        <format: string = @weight_format, group_size: int = @group_size> (integers, weight_scale)
    columns = Transpose <perm = [1, 0]> (weight)
    value = com.fp4dit.FpDequantize
        <format: string = @act_format, group_size: int = @act_group_size> (q, scale)
    product = MatMul (value, columns)
    y = Add (product, bias)
}
"""


def _integers(given: Attributes, codes: Array) -> Array:
    return unpacked(codes, given, "weight_format")


def _reference(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    q, scale, codes, weight_scale, bias = inputs
    weight, group = _integers(given, codes), given["group_size"]
    of_row = given["act_group_size"]
    return (numerics.linear(q, scale, weight, weight_scale, bias, group, of_row),)


def _bound(given: Attributes, inputs: Sequence[Array]) -> npt.NDArray[np.float64]:
    q, scale, codes, weight_scale, bias = inputs
    value = numerics.dequantize(_integers(given, codes), weight_scale, given["group_size"])
    return linear_bound(given, q, scale, value, bias)


def linear_bound(
    given: Attributes, q: Array, scale: Array, weight: FloatArray, bias: Array
) -> npt.NDArray[np.float64]:
    """See `linear_rounding_bound`: of a weight by its values, float32 [N, K]."""
    k, of_row = given["K"], given["act_group_size"]
    if scale.shape[-1] > 1:
        scale = numerics.expand_groups(scale, k, of_row)
    folds = numerics.group_count(k, given["group_size"]) + numerics.group_count(k, of_row)
    return linear_rounding_bound(q, scale, weight, bias, folds)


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


def caption(given: Attributes, size: str | None) -> str:
    """See `Operator.caption`."""
    weights = f"{given['weight_format']} in groups of {given['group_size']}"
    own = given["act_format"] or "float"
    shared = f" in groups of {given['act_group_size']}" if _groups(given) else ""
    return f"Linear {size}: W {weights}, A {own}{shared}"


def _groups(given: Attributes) -> int | None:
    """Inputs of a row that share a scale, None for all."""
    return given["act_group_size"] if given["act_group_size"] < given["K"] else None


def spec_of(given: Attributes, scale: str = DEFAULT_SCALE) -> LayerSpec:
    """How the layer is quantized, with scales of that format; its inputs' rotation is not known here."""
    return LayerSpec.of(
        given["weight_format"],
        given["act_format"] or None,
        given["group_size"],
        scale,
        _groups(given) if given["act_format"] else None,
        wide=given.get("wide"),
    )


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
    caption=caption,
    bound=_bound,
    sample=_sample,
    role="linear",
    parts={"codes": 2, "scale": 3},
    weight_format="weight_format",
    spec=spec_of,
    kernel=_kernel,
)


def linear_attributes(
    act: FloatFormat | None,
    weight: FloatFormat,
    k: int,
    group_size: int,
    act_group_size: int | None = None,
) -> dict[str, Any]:
    """Attributes of FpLinear; without `act` the node is weight-only and takes float activations.

    Args:
        act: format of the activations.
        weight: format of the weight.
        k: input channels.
        group_size: of them that share a weight scale.
        act_group_size: of a row that share an activation's scale; None for all.
    """
    unpack, of_row = unpack_attributes(weight, k), act_group_size or k
    return {
        "act_format": act.name if act else "",
        "weight_format": unpack.pop("format"),
        "group_size": group_size,
        "act_group_size": of_row if of_row < k else WHOLE_ROW,
        **{name: unpack[name] for name in ("K", "bits", "grid")},
    }
