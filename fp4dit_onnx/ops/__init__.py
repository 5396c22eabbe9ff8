"""The operators of domain ``com.fp4dit``, version 1: a record each, a line each in `table`.

Each operator is an ONNX function of standard operators (opset 21), written in ONNX's own text form.
A model carries the functions of the operators it uses: with the custom-op library registered ONNX
Runtime runs the kernels, without it the bodies. The texts are therefore specification, fallback and
test oracle at once. A quantized tensor is grid integers and a scale, ``value = q * scale`` (see
`formats`).
"""

from fp4dit_onnx.ops import (
    fp_attention,
    fp_dequantize,
    fp_gelu_quantize,
    fp_hadamard,
    fp_linear,
    fp_linear_integer,
    fp_norm_quantize,
    fp_salient,
    fp_scale,
    fp_unpack,
)
from fp4dit_onnx.ops.fp_attention import attention_attributes
from fp4dit_onnx.ops.fp_dequantize import dequantize_attributes
from fp4dit_onnx.ops.fp_linear import linear_attributes
from fp4dit_onnx.ops.fp_linear_integer import linear_integer_attributes
from fp4dit_onnx.ops.fp_quantize import (
    QUANTIZE_OPS,
    quantize_attributes,
    quantize_op,
    quantizer_of,
    static_attributes,
)
from fp4dit_onnx.ops.fp_scale import scale_attributes
from fp4dit_onnx.ops.fp_unpack import sign_attributes, unpack_attributes
from fp4dit_onnx.ops.operator import DOMAIN, OPSET, VERSION, WHOLE_ROW, Operator
from fp4dit_onnx.ops.table import OPERATORS, attach_functions, function, has_role, operator_of

__all__ = [
    "ATTENTION",
    "DEQUANTIZE",
    "DOMAIN",
    "GELU_QUANTIZE",
    "HADAMARD",
    "HADAMARD_QUANTIZE",
    "IR_VERSION",
    "LINEAR",
    "LINEAR_INTEGER",
    "LINEAR_SIGNS",
    "NORM_QUANTIZE",
    "OPERATORS",
    "OPSET",
    "QUANTIZE_OPS",
    "SALIENT",
    "SCALE",
    "UNPACK",
    "UNPACK_SIGNS",
    "VERSION",
    "WHOLE_ROW",
    "Operator",
    "attach_functions",
    "attention_attributes",
    "dequantize_attributes",
    "function",
    "has_role",
    "linear_attributes",
    "linear_integer_attributes",
    "operator_of",
    "quantize_attributes",
    "quantize_op",
    "quantizer_of",
    "scale_attributes",
    "sign_attributes",
    "static_attributes",
    "unpack_attributes",
]

IR_VERSION = 10
"""Of the models that carry them."""

ATTENTION = fp_attention.ATTENTION.name
DEQUANTIZE = fp_dequantize.DEQUANTIZE.name
GELU_QUANTIZE = tuple(op.name for op in fp_gelu_quantize.GELU_QUANTIZE)
HADAMARD = fp_hadamard.HADAMARD.name
HADAMARD_QUANTIZE = fp_hadamard.HADAMARD_QUANTIZE.name
LINEAR = fp_linear.LINEAR.name
LINEAR_INTEGER = fp_linear_integer.LINEAR_INTEGER.name
LINEAR_SIGNS = fp_linear_integer.LINEAR_SIGNS.name
NORM_QUANTIZE = tuple(op.name for op in fp_norm_quantize.NORM_QUANTIZE)
SALIENT = fp_salient.SALIENT.name
SCALE = fp_scale.SCALE.name
UNPACK = fp_unpack.UNPACK.name
UNPACK_SIGNS = fp_unpack.UNPACK_SIGNS.name
