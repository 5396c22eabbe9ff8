"""FpGeluQuantize and its like: the GELU of x, quantized, in one."""

from __future__ import annotations

from fp4dit_onnx.numbers.activations import gelu, gelu_rounding_bound
from fp4dit_onnx.ops.fused_quantize import Before, quantizers

__all__ = ["GELU_QUANTIZE"]

GELU_QUANTIZE = quantizers(
    Before(
        name="Gelu",
        what="the GELU of x, by tanh",
        # Not Gelu: of functions in functions ONNX's ReferenceEvaluator does not know it.
        body="""
    linear = Constant <value = float {1.5957691216057308}> ()
    cubic = Constant <value = float {0.07135481627159872}> ()
    square = Mul (x, x)
    bend = Mul (square, cubic)
    slope = Add (bend, linear)
    argument = Mul (x, slope)
    gate = Sigmoid (argument)
    y = Mul (x, gate)""",
        compute=lambda given, inputs: gelu(inputs[0]),
        apart=lambda given, inputs: gelu_rounding_bound(inputs[0]),
    )
)
"""Of int8, of int16, and rotated."""
