"""Fuse attention on quantized q, k and v into FpAttention, which computes on the integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fp4dit_onnx import ops
from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.numbers.numerics import SUM_LIMIT, largest_sum
from fp4dit_onnx.passes.attention_form import HEADS_FIRST, AttentionForm, attention_of
from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import (
    node_names,
    only_consumer,
    producer,
    tensor_names,
    unique_name,
)

__all__ = ["NO_BIAS", "FuseAttention"]

NO_BIAS = "no_bias"
"""Name of the zero that attentions without a mask add to their scores."""
MAX_HEAD_SIZE = 256


@dataclass(frozen=True)
class _Match:
    name: str
    format: FloatFormat
    inputs: list[gs.Tensor]
    bias: gs.Tensor | None
    scale: float
    output: gs.Tensor


@dataclass(frozen=True)
class FuseAttention:
    """``Softmax(q k^T * scale + bias) v`` of dequantized q, k and v is one FpAttention.

    It reads the integers where they are [B, S, H, D] and gives tokens in that order too, so that the
    transposes go with it. The node is named like the attention's module.
    """

    name: str = "fuse_attention"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        zero = gs.Constant(
            unique_name(NO_BIAS, tensor_names(graph)), np.zeros((1, 1, 1, 1), np.float32)
        )

        def rewrite(graph: gs.Graph, match: _Match) -> None:
            bias = match.bias if match.bias is not None else zero
            match.output.inputs.clear()
            graph.nodes.append(
                gs.Node(
                    ops.ATTENTION,
                    unique_name(match.name, node_names(graph)),
                    ops.attention_attributes(match.format, match.scale),
                    [*match.inputs, bias],
                    [match.output],
                    domain=ops.DOMAIN,
                )
            )

        return rewrite_all(graph, self.name, _found(graph), rewrite)


def _found(graph: gs.Graph) -> Iterator[_Match | Skip]:
    for node in graph.nodes:
        found = _match(graph, node) if node.op == "Softmax" else None
        if found is not None:
            yield found


def _match(graph: gs.Graph, softmax: gs.Node) -> _Match | Skip | None:
    form = attention_of(graph, softmax)
    if form is None:
        return None
    q, k, v = (producer(part.tensor, ops.DEQUANTIZE) for part in (form.q, form.k, form.v))
    if q is None or k is None or v is None:
        return Skip(softmax.name, "its q, k and v are not all quantized")
    name = q.name.removesuffix("/Dequantize").removesuffix(".q")
    if reason := _refusal(graph, softmax, form, (q, k, v)):
        return Skip(name, reason)
    tokens = form.mixed.outputs[0].outputs[0]
    return _Match(
        name=name,
        format=format_by_name(q.attrs["format"]),
        inputs=[t for pair in (q, k, v) for t in pair.inputs],
        bias=form.bias,
        scale=form.q.factor * form.k.factor,
        output=tokens.outputs[0],
    )


def _refusal(
    graph: gs.Graph, softmax: gs.Node, form: AttentionForm, pairs: tuple[gs.Node, ...]
) -> str | None:
    """Why an attention cannot be one node, or None."""
    formats = {pair.attrs["format"] for pair in pairs}
    if len(formats) > 1:
        return f"q, k and v are in different formats: {', '.join(sorted(formats))}"
    fmt = format_by_name(formats.pop())
    size = pairs[0].outputs[0].shape[-1]
    if fmt.integer_type == np.float32:
        return f"the integers of {fmt.name} are wider than 16 bits"
    too_wide = largest_sum(fmt, fmt, MAX_HEAD_SIZE) >= SUM_LIMIT
    if not isinstance(size, int) or size > MAX_HEAD_SIZE or too_wide:
        return f"heads of size {size} in {fmt.name} are too large for exact sums"
    parts = (form.q, form.k, form.v)
    if not all(part.is_tokens_first for part in parts) or form.v.factor != 1:
        return "its operands are transposed as " + ", ".join(str(part.axes) for part in parts)
    axis = softmax.attrs.get("axis", -1)
    if axis not in (-1, 3):
        return f"its softmax is over axis {axis}"
    tokens = only_consumer(graph, form.mixed.outputs[0], "Transpose")
    if tokens is None or tokens.attrs.get("perm") != HEADS_FIRST:
        return "its result is not transposed back to tokens"
    bias = form.bias
    if bias is not None and (bias.shape is None or list(bias.shape[1:3]) != [1, 1]):
        return f"its bias has shape {bias.shape}, not one value per key"
    return None
