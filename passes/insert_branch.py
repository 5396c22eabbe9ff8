"""Insert the low-rank branches of layers beside their linears, of standard operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from fp4dit_onnx.bundle.skeleton import placeholder
from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import (
    is_output,
    linears,
    node_names,
    only_consumer,
    tensor_names,
    unique_name,
)
from fp4dit_onnx.spec.low_rank import LowRank, branch_name
from fp4dit_onnx.spec.state import Layout, QuantizedState

__all__ = ["InsertBranch"]


@dataclass(frozen=True)
class _Match:
    matmul: gs.Node
    name: str
    branch: LowRank
    shape: tuple[int, int]


@dataclass(frozen=True)
class InsertBranch:
    """``y`` of a layer with a branch becomes ``y + MatMul(MatMul(x, Cast(down)), Cast(up))``.

    ``x`` is the layer's input before anything is done to it, so this comes before InsertQdq. Both
    matrices are float16; given a layout, placeholders. Layers that share A and read one tensor share
    the product with it.
    """

    state: QuantizedState | Layout
    name: str = "insert_branch"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        made: dict[str, gs.Variable] = {}
        low: dict[tuple[str, str], gs.Variable] = {}

        def rewrite(graph: gs.Graph, match: _Match) -> None:
            roles = match.branch.shapes(*match.shape)
            down, up = (_matrix(graph, match, role, shape, made) for role, shape in roles.items())
            _add(graph, match, down, up, low)

        return rewrite_all(graph, self.name, self._found(graph), rewrite)

    def _found(self, graph: gs.Graph) -> Iterator[_Match | Skip]:
        present = tensor_names(graph)
        for linear in linears(graph):
            layer = self.state.layers.get(linear.layer)
            branch = layer.spec.branch if layer else None
            if layer is None or branch is None:
                yield Skip(linear.layer, "without a branch")
            elif branch_name(linear.layer, "up") in present:
                yield Skip(linear.layer, "has its branch")
            else:
                yield _Match(linear.matmul, linear.layer, branch, (layer.n, layer.k))


def _matrix(
    graph: gs.Graph,
    match: _Match,
    role: str,
    shape: tuple[int, int],
    made: dict[str, gs.Variable],
) -> gs.Variable:
    """One of the two in float32, made once for all calls of the layer and those that share it."""
    name = match.branch.tensor_name(match.name, role)
    if name not in made:
        absent = placeholder(name, list(shape), onnx.TensorProto.FLOAT16)
        half = gs.Constant(name, match.branch.tensors.get(role, LazyValues(absent)))
        made[name] = gs.Variable(f"{name}_value", np.float32, list(shape))
        kind = {"to": onnx.TensorProto.FLOAT}
        graph.nodes.append(
            gs.Node("Cast", f"{_place(name)}/{role.capitalize()}Cast", kind, [half], [made[name]])
        )
    return made[name]


def _place(tensor: str) -> str:
    """Of nodes, by the name of a branch's tensor."""
    return tensor.rpartition(".")[0]


def _add(
    graph: gs.Graph,
    match: _Match,
    down: gs.Variable,
    up: gs.Variable,
    lows: dict[tuple[str, str], gs.Variable],
) -> None:
    """The branch's product is added to what the linear gives, after its bias."""
    nodes, tensors = node_names(graph), tensor_names(graph)

    def result(
        op: str, what: str, given: list[gs.Tensor], width: int, of: str = match.name
    ) -> gs.Variable:
        shape = [*list(y.shape)[:-1], width] if y.shape else None
        made = gs.Variable(unique_name(branch_name(of, what), tensors), np.float32, shape)
        node = unique_name(f"{of}.branch/{what.capitalize()}", nodes)
        graph.nodes.append(gs.Node(op, node, {}, given, [made]))
        return made

    y = match.matmul.outputs[0]
    add = only_consumer(graph, y, "Add")
    if add is not None and any(_is_bias(t, match.shape[0]) for t in add.inputs):
        y = add.outputs[0]
    x = match.matmul.inputs[0]
    if (x.name, down.name) not in lows:
        owner = match.branch.shared or match.name
        lows[x.name, down.name] = result("MatMul", "low", [x, down], match.branch.rank, owner)
    high = result("MatMul", "high", [lows[x.name, down.name], up], match.shape[0])
    ends, readers = is_output(graph, y), list(y.outputs)
    both = result("Add", "sum", [y, high], match.shape[0])
    for reader in readers:
        reader.inputs = [both if t is y else t for t in reader.inputs]
    if ends:
        inner = gs.Variable(
            unique_name(branch_name(match.name, "main"), tensors), np.float32, y.shape
        )
        (maker,) = y.inputs
        maker.outputs = [inner]
        both.inputs[0].inputs[0] = inner
        both.inputs[0].outputs = [y]


def _is_bias(tensor: gs.Tensor, n: int) -> bool:
    return isinstance(tensor, gs.Constant) and tuple(tensor.shape) == (n,)
