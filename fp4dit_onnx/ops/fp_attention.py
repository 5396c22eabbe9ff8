"""FpAttention: softmax attention of quantized queries, keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers.attention import attention
from fp4dit_onnx.numbers.compare import attention_rounding_bound
from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.ops.operator import Array, Attributes, Operator

__all__ = ["ATTENTION", "attention_attributes"]

QUERIES = 8
"""Queries that are compared."""

# A group as long as any head: one scale per row.
_TEXT = """
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
"""


def _reference(given: Attributes, inputs: Sequence[Array]) -> Sequence[Array]:
    q, q_scale, k, k_scale, v, v_scale, bias = inputs
    fmt, factor = format_by_name(given["format"]), given["attention_scale"]
    return (attention(q, q_scale, k, k_scale, v, v_scale, bias, factor, fmt),)


def _bound(given: Attributes, inputs: Sequence[Array]) -> npt.NDArray[np.float64]:
    q, q_scale, k, k_scale, v, v_scale, bias = inputs
    factor = given["attention_scale"]
    return attention_rounding_bound(q, q_scale, k, k_scale, v, v_scale, bias, factor)


def _sample(
    given: Attributes, inputs: Sequence[Array], outputs: Sequence[Array]
) -> tuple[Sequence[Array], Sequence[Array]]:
    """Some queries of all."""
    q, q_scale, *others = inputs
    step = max(1, -(-q.shape[1] // QUERIES))
    return (q[:, ::step], q_scale[:, ::step], *others), [y[:, ::step] for y in outputs]


ATTENTION = Operator(
    name="FpAttention",
    text=_TEXT,
    doc="Softmax attention of quantized queries, keys and values, [batch, token, head, channel]; "
    "bias is added to the scores.",
    results=(np.float32,),
    reference=_reference,
    caption=lambda given, size: f"Attention on {given['format']} queries, keys and values",
    bound=_bound,
    sample=_sample,
    role="attention",
    kernel=lambda given: np.dtype(format_by_name(given["format"]).integer_type).name,
)


def attention_attributes(fmt: FloatFormat, attention_scale: float) -> dict[str, Any]:
    """Attributes of FpAttention: the format of q, k and v, and the factor of their products."""
    return {"format": fmt.name, "attention_scale": float(attention_scale)}
