"""Fuse dequantized linears into FpLinear, which computes on the integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fp4dit_onnx import ops
from fp4dit_onnx.formats import FloatFormat, format_by_name
from fp4dit_onnx.passes.base import PassReport, Skip
from fp4dit_onnx.passes.match import only_consumer, producer

__all__ = ["ONE", "FuseLinear"]

ONE = "one"
"""Name of the scale of weight-only linears."""


@dataclass(frozen=True)
class _Match:
    layer: str
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
    linear without bias gets zeros.
    """

    name: str = "fuse_linear"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        one = gs.Constant(ONE, np.ones(1, np.float32))
        matches: list[_Match] = []
        skipped: list[Skip] = []
        for node in graph.nodes:
            if node.op == "MatMul":
                found = _match(node, one)
                if isinstance(found, _Match):
                    matches.append(found)
                elif found is not None:
                    skipped.append(found)
        for match in matches:
            _rewrite(graph, match)
        graph.cleanup().toposort()
        return PassReport(self.name, len(matches), tuple(skipped))


def _match(node: gs.Node, one: gs.Constant) -> _Match | Skip | None:
    transpose = producer(node.inputs[1], "Transpose")
    dequantize = producer(transpose.inputs[0], ops.DEQUANTIZE) if transpose else None
    if dequantize is None:
        return None  # no quantized weight: attention's own products
    unpack = producer(dequantize.inputs[0], ops.UNPACK)
    if unpack is None:
        return Skip(node.name, "its weight is dequantized from no packed codes")
    pair = producer(node.inputs[0], ops.DEQUANTIZE)
    q, scale = (pair.inputs[0], pair.inputs[1]) if pair else (node.inputs[0], one)
    add = only_consumer(node.outputs[0], "Add")
    bias = next((t for t in add.inputs if isinstance(t, gs.Constant)), None) if add else None
    n = int(unpack.inputs[0].shape[0])
    if bias is not None and tuple(bias.shape) != (n,):
        bias = None
    return _Match(
        layer=unpack.name.removesuffix(".weight/Unpack"),
        q=q,
        scale=scale,
        activation=format_by_name(pair.attrs["format"]) if pair else None,
        unpack=unpack,
        weight_scale=dequantize.inputs[1],
        group_size=int(dequantize.attrs["group_size"]),
        bias=bias,
        output=add.outputs[0] if add and bias is not None else node.outputs[0],
    )


def _rewrite(graph: gs.Graph, match: _Match) -> None:
    codes = match.unpack.inputs[0]
    weight = format_by_name(match.unpack.attrs["format"])
    bias = match.bias
    if bias is None:
        bias = gs.Constant(f"{match.layer}.bias", np.zeros(codes.shape[0], np.float32))
    match.output.inputs.clear()
    graph.nodes.append(
        gs.Node(
            ops.LINEAR,
            match.layer,
            ops.linear_attributes(
                match.activation, weight, int(match.unpack.attrs["K"]), match.group_size
            ),
            [match.q, match.scale, codes, match.weight_scale, bias],
            [match.output],
            domain=ops.DOMAIN,
        )
    )
