"""FpGeluQuantize and its like: the GELU of x, quantized, in one."""

from __future__ import annotations

from collections.abc import Sequence

from fp4dit_onnx.numbers.activations import gelu, gelu_rounding_bound
from fp4dit_onnx.numbers.compare import quantize_rounding_bound
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.ops.fp_hadamard import HADAMARD_QUANTIZE
from fp4dit_onnx.ops.fp_quantize import QUANTIZE
from fp4dit_onnx.ops.operator import Array, Attributes, Operator

__all__ = ["GELU_QUANTIZE"]

_ATTRIBUTES = {
    "format": "string",
    "mantissa_bits": "int",
    "max": "float",
    "group_size": "int",
    "candidates": "floats",
}

# Not Gelu: of functions in functions ONNX's ReferenceEvaluator does not know it.
_TEXT = """
{name} <{names}> (x) => (q, scale)
{{
    linear = Constant <value = float {{1.5957691216057308}}> ()
    cubic = Constant <value = float {{0.07135481627159872}}> ()
    square = Mul (x, x)
    bend = Mul (square, cubic)
    slope = Add (bend, linear)
    argument = Mul (x, slope)
    gate = Sigmoid (argument)
    gelu = Mul (x, gate)
    q, scale = com.fp4dit.{quantizer} <{given}> (gelu)
}}
"""


def _gelu(given: Attributes, inputs: Sequence[Array]) -> Array:
    return gelu(inputs[0])


def _bound(given: Attributes, inputs: Sequence[Array]) -> tuple[Array, Array]:
    x = inputs[0]
    return quantize_rounding_bound(
        gelu(x),
        gelu_rounding_bound(x),
        format_by_name(given["format"]),
        given["group_size"],
        given["candidates"],
        given.get("block", 1),
    )


def _operator(quantizer: Operator, types: dict[str, str]) -> Operator:
    name = quantizer.name.replace("Fp", "FpGelu", 1)
    passed = ", ".join(f"{key}: {kind} = @{key}" for key, kind in types.items())
    text = _TEXT.format(name=name, names=", ".join(types), quantizer=quantizer.name, given=passed)
    return Operator(
        name=name,
        text=text,
        doc=f"{quantizer.name} of the GELU of x, by tanh, in one.",
        results=quantizer.results,
        reference=lambda given, inputs: quantizer.reference(given, [_gelu(given, inputs)]),
        caption=lambda given, size: f"GELU: {quantizer.caption(given, size)}",
        bound=_bound,
        role="quantize",
        shared=True,
        quantizer=quantizer.name,
        before=_gelu,
    )


GELU_QUANTIZE = (
    *(_operator(quantizer, _ATTRIBUTES) for quantizer in QUANTIZE[:2]),
    _operator(HADAMARD_QUANTIZE, {"block": "int", **_ATTRIBUTES}),
)
"""Of int8, of int16, and rotated."""
