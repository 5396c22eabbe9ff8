"""Insert online quantize-dequantize pairs before the linears whose activations are quantized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.skeleton import placeholder
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.numbers.numerics import group_count
from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import (
    Linear,
    linears,
    node_names,
    producer,
    tensor_names,
    unique_name,
)
from fp4dit_onnx.spec.spec import TensorSpec
from fp4dit_onnx.spec.state import LayerLayout, Layout, QuantizedLayer, QuantizedState
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.spec.transforms import tensor_name, transform_of

__all__ = ["InsertQdq", "insert_pair"]


@dataclass(frozen=True)
class _Match:
    matmul: gs.Node
    x: gs.Tensor
    layer: LayerLayout | QuantizedLayer


@dataclass(frozen=True)
class InsertQdq:
    """``MatMul(x, w)`` of a layer in the state becomes ``MatMul(Dequantize(Quantize(x)), w)``.

    The layer's `input_ops` come before. Linears that read the same tensor in the same way share the
    nodes: q, k and v quantize once.
    """

    state: QuantizedState | Layout
    name: str = "insert_qdq"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        turned: dict[tuple[int, Transform], gs.Variable] = {}
        constants: dict[str, gs.Constant] = {}
        shared: dict[tuple[int, TensorSpec], gs.Variable] = {}

        def rewrite(graph: gs.Graph, match: _Match) -> None:
            x, layer = match.x, match.layer
            own = f"{layer.name}.input"
            for one in layer.spec.input_ops:
                turn = (id(x), one)
                if turn not in turned:
                    tensors = _tensors(layer, one, constants)
                    turned[turn] = insert_transform(graph, x, one, own, tensors)
                x = turned[turn]
            if layer.spec.input is not None:
                key = (id(x), layer.spec.input)
                if key not in shared:
                    shared[key] = insert_pair(graph, x, layer.spec.input, own, layer.k)
                x = shared[key]
            match.matmul.inputs[0] = x

        return rewrite_all(graph, self.name, self._found(graph), rewrite)

    def _found(self, graph: gs.Graph) -> Iterator[_Match | Skip]:
        for linear in linears(graph):
            yield _match(linear, self.state.layers.get(linear.layer))


def _match(linear: Linear, layer: LayerLayout | QuantizedLayer | None) -> _Match | Skip:
    x = linear.matmul.inputs[0]
    if layer is None:
        return Skip(linear.layer, "not in the quantized state")
    if layer.spec.input is None and not layer.spec.input_ops:
        return Skip(linear.layer, "its activations stay in float")
    if producer(x, ops.DEQUANTIZE) or (x.inputs and _transforms(x.inputs[0])):
        return Skip(linear.layer, "already quantized")
    return _Match(linear.matmul, x, layer)


def _transforms(node: gs.Node) -> bool:
    """Whether a node is a layer's transform."""
    rest = [tensor.name for tensor in node.inputs[1:]]
    return transform_of(node.op, node.attrs, rest) is not None


def _tensors(
    layer: LayerLayout | QuantizedLayer, one: Transform, made: dict[str, gs.Constant]
) -> list[gs.Constant]:
    """The tensors of a transform, each `made` once; of a layout, by shape and type alone."""
    for role in one.roles:
        name = tensor_name(one.owner, role)
        if name not in made:
            element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(one.element))
            absent = placeholder(name, one.shape(layer.k), element)
            made[name] = gs.Constant(name, one.tensors.get(role, LazyValues(absent)))
    return [made[tensor_name(one.owner, role)] for role in one.roles]


def insert_transform(
    graph: gs.Graph, x: gs.Tensor, one: Transform, own: str, tensors: Sequence[gs.Constant] = ()
) -> gs.Variable:
    """The result of a transform's new node on `x` [..., k] and `tensors`, named after `own`."""
    y = gs.Variable(unique_name(f"{own}.{one.result}", tensor_names(graph)), np.float32, x.shape)
    name = unique_name(f"{own}/{one.operator.removeprefix('Fp')}", node_names(graph))
    domain = None if one.stock else ops.DOMAIN
    given = [x, *tensors]
    graph.nodes.append(gs.Node(one.operator, name, one.attributes, given, [y], domain=domain))
    return y


def insert_pair(graph: gs.Graph, x: gs.Tensor, spec: TensorSpec, own: str, k: int) -> gs.Variable:
    """The result of a new quantize-dequantize pair on `x` [..., k], as `spec` says.

    Its nodes and tensors are named after `own`; a second pair of that name has a number.
    """
    nodes, tensors = node_names(graph), tensor_names(graph)
    fmt, size = format_by_name(spec.format), spec.group_size or k
    op, given = ops.quantizer_of(spec)
    rows = list(x.shape)[:-1] if x.shape else None
    shape = None if rows is None else [*rows, group_count(k, size)]
    q = gs.Variable(unique_name(f"{own}.q", tensors), fmt.integer_type, x.shape)
    scale = gs.Variable(unique_name(f"{own}.scale", tensors), np.float32, shape)
    value = gs.Variable(unique_name(f"{own}.value", tensors), np.float32, x.shape)
    graph.nodes += [
        gs.Node(
            op,
            unique_name(f"{own}/Quantize", nodes),
            given,
            [x],
            [q, scale],
            domain=ops.DOMAIN,
        ),
        gs.Node(
            ops.DEQUANTIZE,
            unique_name(f"{own}/Dequantize", nodes),
            ops.dequantize_attributes(fmt, size),
            [q, scale],
            [value],
            domain=ops.DOMAIN,
        ),
    ]
    return value
