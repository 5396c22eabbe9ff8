"""The operators of domain ``com.fp4dit``, version 1, and what they mean.

Each operator is an ONNX function of standard operators (opset 21), written below in ONNX's own text
form. A model carries the functions of the operators it uses: with the custom-op library registered
ONNX Runtime runs the kernels, without it the bodies. The texts are therefore specification, fallback
and test oracle at once. A quantized tensor is grid integers and a scale, ``value = q * scale``
(see `formats`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser

from fp4dit_onnx.numbers.formats import FloatFormat

__all__ = [
    "ATTENTION",
    "DEQUANTIZE",
    "DOMAIN",
    "IR_VERSION",
    "LINEAR",
    "OPSET",
    "QUANTIZE_OPS",
    "UNPACK",
    "VERSION",
    "attach_functions",
    "attention_attributes",
    "dequantize_attributes",
    "function",
    "linear_attributes",
    "quantize_attributes",
    "quantize_op",
    "unpack_attributes",
]

DOMAIN = "com.fp4dit"
VERSION = 1
OPSET = 21
IR_VERSION = 10

LINEAR = "FpLinear"
ATTENTION = "FpAttention"
DEQUANTIZE = "FpDequantize"
UNPACK = "FpUnpack"
QUANTIZE_OPS: dict[str, npt.DTypeLike] = {
    "FpQuantize": np.int8,
    "FpQuantizeInt16": np.int16,
    "FpQuantizeFloat": np.float32,
}
"""One name a result type: ONNX Runtime wants a custom op's output type fixed or equal to an input's."""

# Constants are tensors: of a value_float, graphsurgeon's folding makes a float64.
# floor(log(a) / ln 2) may be one off next to a power of two. Both binades hold that power of two, and
# no tie is near it, so the rounded result is the same. 8.077935669463161e-28 is 2^-90,
# 3.4028235e38 the largest float32.
_QUANTIZE = """
{name} <format, mantissa_bits, max> (x) => (q, scale) {{
    limit = Constant <value_float: float = @max> ()
    mantissa_bits_int = Constant <value_int: int = @mantissa_bits> ()
    zero = Constant <value = float {{0.0}}> ()
    one = Constant <value = float {{1.0}}> ()
    tiny = Constant <value = float {{8.077935669463161e-28}}> ()
    huge = Constant <value = float {{3.4028234663852886e38}}> ()
    per_ln2 = Constant <value = float {{1.4426950408889634}}> ()
    steps = Constant <value = float[32] {{{steps}}}> ()
    last = Constant <value = int64[1] {{-1}}> ()
    nan = Constant <value = float {{0.0}}> ()
    magnitude = Abs (x)
    is_finite = LessOrEqual (magnitude, huge)
    is_not_finite = Not (is_finite)
    poison = Cast <to = 1> (is_not_finite)
    row_poison = ReduceMax <keepdims = 1> (poison, last)
    row_is_finite = Less (row_poison, one)
    finite_magnitude = Where (is_finite, magnitude, zero)
    row_max = ReduceMax <keepdims = 1> (finite_magnitude, last)
    row_is_large = GreaterOrEqual (row_max, tiny)
    live = And (row_is_large, row_is_finite)
    amax = Where (live, row_max, one)
    factor = Div (limit, amax)
    live_x = Where (live, x, zero)
    t = Mul (live_x, factor)
    absolute = Abs (t)
    at_least_one = Max (absolute, one)
    log = Log (at_least_one)
    log2 = Mul (log, per_ln2)
    binade = Floor (log2)
    mantissa_bits_float = Cast <to = 1> (mantissa_bits_int)
    binades_above = Sub (binade, mantissa_bits_float)
    exponent = Max (binades_above, zero)
    index = Cast <to = 7> (exponent)
    step = Gather (steps, index)
    significand = Div (t, step)
    rounded = Round (significand)
    integer = Mul (rounded, step)
    negative_limit = Neg (limit)
    clipped = Clip (integer, negative_limit, limit)
    q = Cast <to = {type}> (clipped)
    quotient = Div (row_max, limit)
    live_scale = Where (row_is_large, quotient, zero)
    scale = Where (row_is_finite, live_scale, nan)
}}
"""

# FpUnpack divides where it could shift to the right: OpenVINO 2026.4 rounds such shifts. It
# subtracts in int64: ONNX Runtime before 1.21 cannot in uint64.
_TEXTS = {
    DEQUANTIZE: """
FpDequantize <format, group_size> (q, scale) => (y) {
    group = Constant <value_int: int = @group_size> ()
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    last_dim = Shape <start = -1> (q)
    size = Squeeze (last_dim)
    element = Range (zero, size, one)
    index = Div (element, group)
    scale_float = Cast <to = 1> (scale)
    step = Gather <axis = -1> (scale_float, index)
    integer = Cast <to = 1> (q)
    y = Mul (integer, step)
}
""",
    UNPACK: """
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
""",
    LINEAR: """
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
""",
    # A group as long as any head: one scale a row.
    ATTENTION: """
FpAttention <format, attention_scale> (q, q_scale, k, k_scale, v, v_scale, bias) => (y)
{
    factor = Constant <value_float: float = @attention_scale> ()
    queries = com.fp4dit.FpDequantize <format: string = @format, group_size = 65536> (q, q_scale)
    keys = com.fp4dit.FpDequantize <format: string = @format, group_size = 65536> (k, k_scale)
    values = com.fp4dit.FpDequantize <format: string = @format, group_size = 65536> (v, v_scale)
    query_heads = Transpose <perm = [0, 2, 1, 3]> (queries)
    key_heads = Transpose <perm = [0, 2, 3, 1]> (keys)
    value_heads = Transpose <perm = [0, 2, 1, 3]> (values)
    products = MatMul (query_heads, key_heads)
    scaled = Mul (products, factor)
    scores = Add (scaled, bias)
    probabilities = Softmax <axis = -1> (scores)
    weighted = MatMul (probabilities, value_heads)
    y = Transpose <perm = [0, 2, 1, 3]> (weighted)
}
""",
}

_QUANTIZE_DOC = (
    "Quantizes each row of the last axis: q is the nearest grid integer of the format, ties to even, "
    "scale is the row's largest magnitude by the format's largest integer; x is about q * scale."
)
_DOCS = {
    **dict.fromkeys(QUANTIZE_OPS, _QUANTIZE_DOC),
    DEQUANTIZE: "y = q * scale, one scale for every group_size elements of the last axis.",
    UNPACK: "Codes to grid integers: two 4-bit codes a byte, the even element in the low nibble.",
    LINEAR: "y = x W^T + bias for packed weights W [N, K], with one scale for each output channel and "
    "group_size inputs; x is q * scale, or q itself where act_format is empty.",
    ATTENTION: "Softmax attention of quantized queries, keys and values, [batch, token, head, "
    "channel]; bias is added to the scores.",
}
"""What an operator computes, for viewers; the bodies define it."""

_CALLS = {LINEAR: (UNPACK, DEQUANTIZE), ATTENTION: (DEQUANTIZE,)}
"""Functions that a body calls, so that a model carries them too."""


def _text(op: str) -> str:
    if op not in QUANTIZE_OPS:
        return _TEXTS[op]
    steps = ", ".join(f"{2.0**i:.1f}" for i in range(32))
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(QUANTIZE_OPS[op]))
    return _QUANTIZE.format(name=op, steps=steps, type=element)


@cache
def function(op: str) -> onnx.FunctionProto:
    """The ONNX function that defines operator `op`."""
    header = f'<opset_import: ["": {OPSET}, "{DOMAIN}": {VERSION}], domain: "{DOMAIN}">'
    proto = onnx.parser.parse_function(header + _text(op))
    for node in proto.node:
        if list(node.output) == ["nan"]:  # the text form has no way to write it
            node.attribute[0].t.float_data[:] = [np.nan]
    proto.doc_string = (
        f"{_DOCS[op]} Version {VERSION}. Runs as a kernel with the custom-op library of fp4dit-onnx, "
        "as this function's body without."
    )
    return proto


def attach_functions(model: onnx.ModelProto, ops: Iterable[str] | None = None) -> None:
    """Give `model` the functions of `ops` (by default: of the operators it uses), callees first."""
    used = {n.op_type for n in model.graph.node if n.domain == DOMAIN} if ops is None else set(ops)
    for op in sorted(used):
        used |= set(_CALLS.get(op, ()))
    order = [*QUANTIZE_OPS, UNPACK, DEQUANTIZE, LINEAR, ATTENTION]
    del model.functions[:]
    model.functions.extend(function(op) for op in order if op in used)


def quantize_op(fmt: FloatFormat) -> str:
    """The quantize operator whose result type holds the grid integers of `fmt`."""
    return next(op for op, dtype in QUANTIZE_OPS.items() if dtype == fmt.integer_type)


def quantize_attributes(fmt: FloatFormat) -> dict[str, Any]:
    """Attributes of a quantize operator: the format's name and the two numbers that its body needs."""
    return {"format": fmt.name, "mantissa_bits": fmt.mantissa_bits, "max": fmt.max_integer}


def dequantize_attributes(fmt: FloatFormat, group_size: int) -> dict[str, Any]:
    """Attributes of FpDequantize; a scale per row is one group as long as the row."""
    return {"format": fmt.name, "group_size": group_size}


def unpack_attributes(fmt: FloatFormat, k: int) -> dict[str, Any]:
    """Attributes of FpUnpack; `grid` is the grid integer of every code (0 for codes of no number)."""
    grid = [float(v) for v in np.nan_to_num(fmt.grid, nan=0.0)]
    return {"format": fmt.name, "bits": fmt.storage_bits, "grid": grid, "K": k}


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


def attention_attributes(fmt: FloatFormat, attention_scale: float) -> dict[str, Any]:
    """Attributes of FpAttention: the format of q, k and v, and the factor of their products."""
    return {"format": fmt.name, "attention_scale": float(attention_scale)}
