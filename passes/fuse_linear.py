"""Fuse dequantized linears into FpLinear, which computes on the integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

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

_OPERATORS: dict[tuple[str, int], tuple[str, Callable[..., dict[str, Any]]]] = {
    (ops.UNPACK, 1): (ops.LINEAR, ops.linear_attributes),
    (ops.UNPACK, 2): (ops.LINEAR_INTEGER, ops.linear_integer_attributes),
    (ops.UNPACK_SIGNS, 2): (ops.LINEAR_SIGNS, ops.linear_integer_attributes),
}
"""By what unpacks the weight, and how many tensors hold its scales."""
_SIGNS = ("wide", "signs")
"""Attributes of the unpacking node that are the linear's too."""

_UNPACK = ".weight/Unpack"
"""After a layer's name, that of the node which unpacks its weight."""
ONE = "one"
"""Name of the scale of weight-only linears."""


@dataclass(frozen=True)
class _Match:
    q: gs.Tensor
    scale: gs.Tensor
    activation: FloatFormat | None
    unpack: gs.Node
    weight_scales: list[gs.Tensor]
    group_size: int
    act_group_size: int | None
    bias: gs.Constant | None
    output: gs.Tensor


@dataclass(frozen=True)
class FuseLinear:
    """``MatMul(Dequantize(q, s), Transpose(Dequantize(Unpack(codes), ws))) + bias`` is one FpLinear.

    Where multipliers make the weight's scales it is one FpLinearInteger, which needs int8 activations.
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
    unpack = producer(dequantize.inputs[0], ops.UNPACK) or producer(
        dequantize.inputs[0], ops.UNPACK_SIGNS
    )
    if unpack is None:
        return Skip(node.name, "its weight is dequantized from no packed codes")
    multiplied = producer(dequantize.inputs[1], ops.SCALE)
    pair = producer(node.inputs[0], ops.DEQUANTIZE)
    activation = format_by_name(pair.attrs["format"]) if pair else None
    if multiplied and (activation is None or activation.integer_type != np.int8):
        found = activation.name if activation else "float"
        return Skip(
            node.name, f"its scales are multipliers of int8 products, its input is {found}"
        )
    q, scale = (pair.inputs[0], pair.inputs[1]) if pair else (node.inputs[0], one)
    add = only_consumer(graph, node.outputs[0], "Add")
    bias = next((t for t in add.inputs if isinstance(t, gs.Constant)), None) if add else None
    n = int(unpack.inputs[0].shape[0])
    if bias is not None and tuple(bias.shape) != (n,):
        bias = None
    return _Match(
        q=q,
        scale=scale,
        activation=activation,
        unpack=unpack,
        weight_scales=list(multiplied.inputs if multiplied else dequantize.inputs[1:]),
        group_size=int(dequantize.attrs["group_size"]),
        act_group_size=int(pair.attrs["group_size"]) if pair else None,
        bias=bias,
        output=add.outputs[0] if add and bias is not None else node.outputs[0],
    )


def _layer(unpack: gs.Node) -> str:
    return str(unpack.name).removesuffix(_UNPACK)


def _node_name(graph: gs.Graph, layer: str) -> str:
    """Of the FpLinear of `layer`: its own name, else one that is not an other layer's either."""
    others = {_layer(node) for node in graph.nodes if str(node.name).endswith(_UNPACK)} - {layer}
    return unique_name(layer, node_names(graph) | others)


def _rewrite(graph: gs.Graph, match: _Match) -> None:
    codes, layer = match.unpack.inputs[0], _layer(match.unpack)
    weight = format_by_name(match.unpack.attrs["format"])
    bias = match.bias
    if bias is None:
        name = unique_name(f"{layer}.zero_bias", tensor_names(graph))
        bias = gs.Constant(name, np.zeros(codes.shape[0], np.float32))
    op, attributes = _OPERATORS[match.unpack.op, len(match.weight_scales)]
    k = int(match.unpack.attrs["K"])
    given = attributes(match.activation, weight, k, match.group_size, match.act_group_size)
    given |= {name: match.unpack.attrs[name] for name in _SIGNS if name in match.unpack.attrs}
    match.output.inputs.clear()
    graph.nodes.append(
        gs.Node(
            op,
            _node_name(graph, layer),
            given,
            [match.q, match.scale, codes, *match.weight_scales, bias],
            [match.output],
            domain=ops.DOMAIN,
        )
    )
