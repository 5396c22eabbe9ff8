"""Replace float weights by packed codes and group scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fp4dit_onnx import ops
from fp4dit_onnx.passes.base import PassReport, Skip
from fp4dit_onnx.passes.match import linears
from fp4dit_onnx.state import QuantizedLayer, QuantizedState

__all__ = ["PackWeights", "codes_name", "scale_name"]


def codes_name(layer: str) -> str:
    """Name of the packed initializer of `layer`."""
    return f"{layer}.weight.codes"


def scale_name(layer: str) -> str:
    """Name of the group scales of `layer`."""
    return f"{layer}.weight.scale"


@dataclass(frozen=True)
class PackWeights:
    """The weight of a layer in the state becomes ``Dequantize(Unpack(codes), scale)``.

    The float initializer is gone afterwards: nothing else may read it, or the layer is skipped.
    """

    state: QuantizedState
    name: str = "pack_weights"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        rewritten, skipped = 0, []
        for linear in list(linears(graph)):
            layer = self.state.layers.get(linear.layer)
            if layer is None:
                skipped.append(Skip(linear.layer, "not in the quantized state"))
            elif tuple(linear.weight.shape) != (layer.n, layer.k):
                shape = tuple(linear.weight.shape)
                skipped.append(Skip(linear.layer, f"weight {shape}, state {(layer.n, layer.k)}"))
            else:
                linear.transpose.inputs[0] = _packed(graph, layer)
                rewritten += 1
        graph.cleanup().toposort()
        return PassReport(self.name, rewritten, tuple(skipped))


def _packed(graph: gs.Graph, layer: QuantizedLayer) -> gs.Variable:
    fmt, name = layer.spec.weight_format, layer.name
    codes = gs.Constant(codes_name(name), layer.codes)
    scale = gs.Constant(scale_name(name), layer.scale)
    integers = gs.Variable(f"{name}.weight.q", np.float32, [layer.n, layer.k])
    weight = gs.Variable(f"{name}.weight.value", np.float32, [layer.n, layer.k])
    graph.nodes += [
        gs.Node(
            ops.UNPACK,
            f"{name}.weight/Unpack",
            ops.unpack_attributes(fmt, layer.k),
            [codes],
            [integers],
            domain=ops.DOMAIN,
        ),
        gs.Node(
            ops.DEQUANTIZE,
            f"{name}.weight/Dequantize",
            ops.dequantize_attributes(fmt, layer.spec.group_size),
            [integers, scale],
            [weight],
            domain=ops.DOMAIN,
        ),
    ]
    return weight
