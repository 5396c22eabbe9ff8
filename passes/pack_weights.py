"""Replace float weights by packed codes and group scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.names import part_of
from fp4dit_onnx.bundle.skeleton import placeholder
from fp4dit_onnx.numbers.numerics import group_count
from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import Linear, is_output, linears
from fp4dit_onnx.spec.state import LayerLayout, Layout, QuantizedLayer, QuantizedState, part_shapes

__all__ = ["PackWeights"]

_TYPES = {
    "codes": onnx.TensorProto.UINT8,
    "scale": onnx.TensorProto.FLOAT16,
    "multipliers": onnx.TensorProto.UINT8,
    "channel_scale": onnx.TensorProto.FLOAT,
}
"""Of a layer's parts whose values come later, by role."""


@dataclass(frozen=True)
class _Match:
    layer: LayerLayout | QuantizedLayer
    transposes: tuple[gs.Node, ...]


@dataclass(frozen=True)
class PackWeights:
    """The weight of a layer in the state becomes ``Dequantize(Unpack(codes), scale)``.

    All linears that read a weight read the same packed one afterwards. The float initializer is gone
    then: if anything else reads it the layer is skipped. Given a layout, codes and scales are
    placeholders.
    """

    state: QuantizedState | Layout
    name: str = "pack_weights"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, self._found(graph), _rewrite)

    def _found(self, graph: gs.Graph) -> Iterator[_Match | Skip]:
        calls: dict[str, list[Linear]] = {}
        for linear in linears(graph):
            calls.setdefault(linear.layer, []).append(linear)
        for name, uses in calls.items():
            layer = self.state.layers.get(name)
            if layer is None:
                yield Skip(name, "not in the quantized state")
            else:
                yield _match(graph, layer, uses)


def _match(
    graph: gs.Graph, layer: LayerLayout | QuantizedLayer, uses: Sequence[Linear]
) -> _Match | Skip:
    weight = uses[0].weight
    shape, expected = tuple(weight.shape), (layer.n, layer.k)
    if shape != expected:
        return Skip(layer.name, f"weight {shape}, state {expected}")
    transposes = {id(use.transpose): use.transpose for use in uses}
    columns = [transpose.outputs[0] for transpose in transposes.values()]
    if any(is_output(graph, tensor) for tensor in (weight, *columns)):
        return Skip(layer.name, "its weight is a graph output: a float copy would stay")
    own = transposes.keys() | {id(use.matmul) for use in uses}
    readers = [node for tensor in (weight, *columns) for node in tensor.outputs]
    others = sorted({node.op for node in readers if id(node) not in own})
    if others:
        return Skip(
            layer.name, f"its weight is read by {', '.join(others)} too: a float copy would stay"
        )
    return _Match(layer, tuple(transposes.values()))


def _rewrite(graph: gs.Graph, match: _Match) -> None:
    weight = _packed(graph, match.layer)
    for transpose in match.transposes:
        transpose.inputs[0] = weight


def _constants(layer: LayerLayout | QuantizedLayer) -> dict[str, gs.Constant]:
    """The parts by role; of a layout, by shape and type alone."""
    if isinstance(layer, QuantizedLayer):
        return {r: gs.Constant(part_of(layer.name, r), v) for r, v in layer.parts.items()}
    found = {}
    for role, shape in part_shapes(layer.n, layer.k, layer.spec).items():
        absent = placeholder(part_of(layer.name, role), shape, _TYPES[role])
        found[role] = gs.Constant(absent.name, LazyValues(absent))
    return found


def _scale(graph: gs.Graph, name: str, groups: int, parts: Mapping[str, gs.Constant]) -> gs.Tensor:
    """The scales of the weight's groups, [N, groups]."""
    if "scale" in parts:
        return parts["scale"]
    given = [parts["multipliers"], parts["channel_scale"]]
    scale = gs.Variable(f"{name}.weight.scale", np.float32, [given[1].shape[0], groups])
    graph.nodes.append(
        gs.Node(
            ops.SCALE,
            f"{name}.weight/Scale",
            ops.scale_attributes(groups),
            given,
            [scale],
            domain=ops.DOMAIN,
        )
    )
    return scale


def _packed(graph: gs.Graph, layer: LayerLayout | QuantizedLayer) -> gs.Variable:
    fmt, name = layer.spec.weight_format, layer.name
    parts = _constants(layer)
    scale = _scale(graph, name, group_count(layer.k, layer.spec.group_size), parts)
    integers = gs.Variable(f"{name}.weight.q", np.float32, [layer.n, layer.k])
    weight = gs.Variable(f"{name}.weight.value", np.float32, [layer.n, layer.k])
    wide = layer.spec.wide
    signs = {} if wide is None else ops.sign_attributes(layer.k, wide)
    graph.nodes += [
        gs.Node(
            ops.UNPACK_SIGNS if signs else ops.UNPACK,
            f"{name}.weight/Unpack",
            {**ops.unpack_attributes(fmt, layer.k), **signs},
            [parts["codes"]],
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
