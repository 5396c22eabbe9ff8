"""Insert online quantize-dequantize pairs before the linears whose activations are quantized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fp4dit_onnx import ops
from fp4dit_onnx.numbers.formats import FloatFormat
from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import (
    Linear,
    linears,
    node_names,
    producer,
    tensor_names,
    unique_name,
)
from fp4dit_onnx.spec.state import LayerLayout, Layout, QuantizedLayer, QuantizedState

__all__ = ["InsertQdq", "insert_pair"]


@dataclass(frozen=True)
class _Match:
    matmul: gs.Node
    x: gs.Tensor
    layer: LayerLayout | QuantizedLayer
    format: FloatFormat


@dataclass(frozen=True)
class InsertQdq:
    """``MatMul(x, w)`` of a layer in the state becomes ``MatMul(Dequantize(Quantize(x)), w)``.

    Linears that read the same tensor in the same format share one pair: q, k and v quantize once.
    """

    state: QuantizedState | Layout
    name: str = "insert_qdq"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        shared: dict[tuple[int, str], gs.Variable] = {}

        def rewrite(graph: gs.Graph, match: _Match) -> None:
            key = (id(match.x), match.format.name)
            if key not in shared:
                own, k = f"{match.layer.name}.input", match.layer.k
                shared[key] = insert_pair(graph, match.x, match.format, own, k)
            match.matmul.inputs[0] = shared[key]

        return rewrite_all(graph, self.name, self._found(graph), rewrite)

    def _found(self, graph: gs.Graph) -> Iterator[_Match | Skip]:
        for linear in linears(graph):
            yield _match(linear, self.state.layers.get(linear.layer))


def _match(linear: Linear, layer: LayerLayout | QuantizedLayer | None) -> _Match | Skip:
    x = linear.matmul.inputs[0]
    if layer is None:
        return Skip(linear.layer, "not in the quantized state")
    if layer.spec.activation_format is None:
        return Skip(linear.layer, "its activations stay in float")
    if producer(x, ops.DEQUANTIZE):
        return Skip(linear.layer, "already quantized")
    return _Match(linear.matmul, x, layer, layer.spec.activation_format)


def insert_pair(graph: gs.Graph, x: gs.Tensor, fmt: FloatFormat, own: str, k: int) -> gs.Variable:
    """The result of a new quantize-dequantize pair on `x` [..., k], one scale per row.

    Its nodes and tensors are named after `own`; a second pair of that name has a number.
    """
    nodes, tensors = node_names(graph), tensor_names(graph)
    rows = list(x.shape)[:-1] if x.shape else None
    shape = None if rows is None else [*rows, 1]
    q = gs.Variable(unique_name(f"{own}.q", tensors), fmt.integer_type, x.shape)
    scale = gs.Variable(unique_name(f"{own}.scale", tensors), np.float32, shape)
    value = gs.Variable(unique_name(f"{own}.value", tensors), np.float32, x.shape)
    graph.nodes += [
        gs.Node(
            ops.quantize_op(fmt),
            unique_name(f"{own}/Quantize", nodes),
            ops.quantize_attributes(fmt),
            [x],
            [q, scale],
            domain=ops.DOMAIN,
        ),
        gs.Node(
            ops.DEQUANTIZE,
            unique_name(f"{own}/Dequantize", nodes),
            ops.dequantize_attributes(fmt, k),
            [q, scale],
            [value],
            domain=ops.DOMAIN,
        ),
    ]
    return value
