"""FpNormQuantize and its like: rows of x normalized, scaled and shifted, quantized, in one."""

from __future__ import annotations

from collections.abc import Sequence

from fp4dit_onnx.numbers.norms import layer_norm, layer_norm_rounding_bound
from fp4dit_onnx.ops.fused_quantize import Before, quantizers
from fp4dit_onnx.ops.operator import Array, Attributes

__all__ = ["NORM_QUANTIZE"]


def _norm(given: Attributes, inputs: Sequence[Array]) -> Array:
    x, gain, shift = inputs
    return layer_norm(x, gain, shift, given["epsilon"])


def _apart(given: Attributes, inputs: Sequence[Array]) -> Array:
    x, gain, shift = inputs
    return layer_norm_rounding_bound(x, gain, shift, given["epsilon"])


NORM_QUANTIZE = quantizers(
    Before(
        name="Norm",
        what="the layer norm of x, times gain, plus shift",
        body="""
    width = Shape <start = -1> (x)
    ones = ConstantOfShape <value = float[1] {1.0}> (width)
    unit = LayerNormalization <axis = -1, epsilon: float = @epsilon, stash_type = 1> (x, ones)
    scaled = Mul (unit, gain)
    y = Add (scaled, shift)""",
        compute=_norm,
        apart=_apart,
        inputs=("x", "gain", "shift"),
        attributes={"epsilon": "float"},
    )
)
"""Of int8, of int16, and rotated."""
