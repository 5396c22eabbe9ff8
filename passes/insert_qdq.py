"""Insert online quantize-dequantize pairs before the linears whose activations are quantized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fp4dit_onnx import ops
from fp4dit_onnx.formats import FloatFormat
from fp4dit_onnx.passes.base import PassReport, Skip
from fp4dit_onnx.passes.match import linears, producer
from fp4dit_onnx.state import QuantizedState

__all__ = ["InsertQdq"]


@dataclass(frozen=True)
class InsertQdq:
    """``MatMul(x, w)`` of a layer in the state becomes ``MatMul(Dequantize(Quantize(x)), w)``.

    Linears that read the same tensor in the same format share one pair: q, k and v quantize once.
    """

    state: QuantizedState
    name: str = "insert_qdq"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        shared: dict[tuple[int, str], gs.Variable] = {}
        rewritten, skipped = 0, []
        for linear in list(linears(graph)):
            layer = self.state.layers.get(linear.layer)
            x = linear.matmul.inputs[0]
            if layer is None:
                skipped.append(Skip(linear.layer, "not in the quantized state"))
            elif layer.spec.activation_format is None:
                skipped.append(Skip(linear.layer, "its activations stay in float"))
            elif producer(x, ops.DEQUANTIZE):
                skipped.append(Skip(linear.layer, "already quantized"))
            else:
                fmt = layer.spec.activation_format
                key = (id(x), fmt.name)
                if key not in shared:
                    shared[key] = _pair(graph, x, fmt, layer.k, linear.layer)
                linear.matmul.inputs[0] = shared[key]
                rewritten += 1
        graph.cleanup().toposort()
        return PassReport(self.name, rewritten, tuple(skipped))


def _pair(graph: gs.Graph, x: gs.Tensor, fmt: FloatFormat, k: int, layer: str) -> gs.Variable:
    rows = list(x.shape)[:-1] if x.shape else None
    q = gs.Variable(f"{layer}.input.q", fmt.integer_type, x.shape)
    scale = gs.Variable(f"{layer}.input.scale", np.float32, None if rows is None else [*rows, 1])
    value = gs.Variable(f"{layer}.input.value", np.float32, x.shape)
    graph.nodes += [
        gs.Node(
            ops.quantize_op(fmt),
            f"{layer}.input/Quantize",
            ops.quantize_attributes(fmt),
            [x],
            [q, scale],
            domain=ops.DOMAIN,
        ),
        gs.Node(
            ops.DEQUANTIZE,
            f"{layer}.input/Dequantize",
            ops.dequantize_attributes(fmt, k),
            [q, scale],
            [value],
            domain=ops.DOMAIN,
        ),
    ]
    return value
