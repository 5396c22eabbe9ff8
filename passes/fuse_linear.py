"""Fuse dequantized linears into FpLinear, which computes on the integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fp4dit_onnx import ops
from fp4dit_onnx.numbers.formats import FloatFormat, format_by_name
from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import (
    node_names,
    only_consumer,
    producer,
    tensor_names,
    unique_name,
)

__all__ = ["ONE", "FuseLinear"]

ONE = "one"
"""Name of the scale of weight-only linears."""


@dataclass(frozen=True)
class _Match:
    q: gs.Tensor
    scale: gs.Tensor
    activation: FloatFormat | None
    unpack: gs.Node
    weight_scale: gs.Tensor
    group_size: int
    bias: gs.Constant | None
    output: gs.Tensor


@dataclass(frozen=True)
class FuseLinear:
    """``MatMul(Dequantize(q, s), Transpose(Dequantize(Unpack(codes), ws))) + bias`` is one FpLinear.

    Without a quantized activation the FpLinear is weight-only: q is the float tensor, s is 1. A
    linear without bias gets zeros. The node is named like the layer; where one is called twice the
    second has a number, and shares the weight.
    """

    name: str = "fuse_linear"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, _found(graph), _rewrite)


def _found(graph: gs.Graph) -> Iterator[_Match | Skip]:
    one = gs.Constant(unique_name(ONE, tensor_names(graph)), np.ones(1, np.float32))
    for node in graph.nodes:
        found = _match(graph, node, one) if node.op == "MatMul" else None
        if found is not None:
            yield found


def _match(graph: gs.Graph, node: gs.Node, one: gs.Constant) -> _Match | Skip | None:
    transpose = producer(node.inputs[1], "Transpose")
    if transpose is None or transpose.attrs.get("perm") != [1, 0]:
        return None
    dequantize = producer(transpose.inputs[0], ops.DEQUANTIZE)
    if dequantize is None:
        return None  # no quantized weight: attention's own products
    unpack = producer(dequantize.inputs[0], ops.UNPACK)
    if unpack is None:
        return Skip(node.name, "its weight is dequantized from no packed codes")
    pair = producer(node.inputs[0], ops.DEQUANTIZE)
    q, scale = (pair.inputs[0], pair.inputs[1]) if pair else (node.inputs[0], one)
    add = only_consumer(graph, node.outputs[0], "Add")
    bias = next((t for t in add.inputs if isinstance(t, gs.Constant)), None) if add else None
    n = int(unpack.inputs[0].shape[0])
    if bias is not None and tuple(bias.shape) != (n,):
        bias = None
    return _Match(
        q=q,
        scale=scale,
        activation=format_by_name(pair.attrs["format"]) if pair else None,
        unpack=unpack,
        weight_scale=dequantize.inputs[1],
        group_size=int(dequantize.attrs["group_size"]),
        bias=bias,
        output=add.outputs[0] if add and bias is not None else node.outputs[0],
    )


def _layer(unpack: gs.Node) -> str:
    return str(unpack.name).removesuffix(".weight/Unpack")


def _node_name(graph: gs.Graph, layer: str) -> str:
    """Of the FpLinear of `layer`: its own name, else one that is not an other layer's either."""
    others = {_layer(node) for node in graph.nodes if node.op == ops.UNPACK} - {layer}
    return unique_name(layer, node_names(graph) | others)


def _rewrite(graph: gs.Graph, match: _Match) -> None:
    codes, layer = match.unpack.inputs[0], _layer(match.unpack)
    weight = format_by_name(match.unpack.attrs["format"])
    bias = match.bias
    if bias is None:
        name = unique_name(f"{layer}.zero_bias", tensor_names(graph))
        bias = gs.Constant(name, np.zeros(codes.shape[0], np.float32))
    match.output.inputs.clear()
    graph.nodes.append(
        gs.Node(
            ops.LINEAR,
            _node_name(graph, layer),
            ops.linear_attributes(
                match.activation, weight, int(match.unpack.attrs["K"]), match.group_size
            ),
            [match.q, match.scale, codes, match.weight_scale, bias],
            [match.output],
            domain=ops.DOMAIN,
        )
    )
