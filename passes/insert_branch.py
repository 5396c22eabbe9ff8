"""Insert the low-rank branches and slots of layers beside their linears, of standard operators."""

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
from fp4dit_onnx.spec.low_rank import BRANCH, SLOT, LowRank
from fp4dit_onnx.spec.state import Layout, QuantizedState

__all__ = ["InsertBranch"]


@dataclass(frozen=True)
class _Match:
    """One to insert.

    Attributes:
        matmul: of the layer.
        start: of the names of its tensors.
        owner: of that of its A.
        branch: it, or a slot with zeros.
        shape: [N, K] of the layer.
    """

    matmul: gs.Node
    start: str
    owner: str
    branch: LowRank
    shape: tuple[int, int]


@dataclass(frozen=True)
class InsertBranch:
    """``y`` of a layer with a branch becomes ``y + MatMul(MatMul(x, Cast(down)), Cast(up))``.

    ``x`` is the layer's input before anything is done to it, so this comes before InsertQdq. Both
    matrices are float16; given a layout, placeholders; those of a slot are zeros. Layers that share A
    and read one tensor share the product with it.
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
            spec = layer.spec if layer else None
            if layer is None or spec is None or (spec.branch is None and spec.slot is None):
                yield Skip(linear.layer, "without a branch")
                continue
            shape = (layer.n, layer.k)
            for kind, one in ((BRANCH, spec.branch), (SLOT, _zeros(spec.slot, shape))):
                start = linear.layer + kind
                if one is None:
                    continue
                if f"{start}up" in present:
                    yield Skip(linear.layer, "has its branch")
                else:
                    owner = (one.shared or linear.layer) + kind
                    yield _Match(linear.matmul, start, owner, one, shape)


def _zeros(slot: LowRank | None, shape: tuple[int, int]) -> LowRank | None:
    """A slot as it is until a run fills it."""
    if slot is None:
        return None
    return LowRank.of(*(np.zeros(one, np.float16) for one in slot.shapes(*shape).values()))


def _matrix(
    graph: gs.Graph,
    match: _Match,
    role: str,
    shape: tuple[int, int],
    made: dict[str, gs.Variable],
) -> gs.Variable:
    """One of the two in float32, made once for all calls of the layer and those that share it."""
    start = match.owner if role == "down" else match.start
    name = start + role
    if name not in made:
        absent = placeholder(name, list(shape), onnx.TensorProto.FLOAT16)
        half = gs.Constant(name, match.branch.tensors.get(role, LazyValues(absent)))
        made[name] = gs.Variable(f"{name}_value", np.float32, list(shape))
        kind = {"to": onnx.TensorProto.FLOAT}
        graph.nodes.append(
            gs.Node("Cast", f"{_place(start)}/{role.capitalize()}Cast", kind, [half], [made[name]])
        )
    return made[name]


def _place(start: str) -> str:
    """Of nodes, by what the names of a branch's tensors begin with."""
    return start.removesuffix(".")


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
        op: str, what: str, given: list[gs.Tensor], width: int, start: str = match.start
    ) -> gs.Variable:
        shape = [*list(y.shape)[:-1], width] if y.shape else None
        made = gs.Variable(unique_name(start + what, tensors), np.float32, shape)
        node = unique_name(f"{_place(start)}/{what.capitalize()}", nodes)
        graph.nodes.append(gs.Node(op, node, {}, given, [made]))
        return made

    y = match.matmul.outputs[0]
    add = only_consumer(graph, y, "Add")
    if add is not None and any(_is_bias(t, match.shape[0]) for t in add.inputs):
        y = add.outputs[0]
    x = match.matmul.inputs[0]
    if (x.name, down.name) not in lows:
        rank = match.branch.rank
        lows[x.name, down.name] = result("MatMul", "low", [x, down], rank, match.owner)
    high = result("MatMul", "high", [lows[x.name, down.name], up], match.shape[0])
    ends, readers = is_output(graph, y), list(y.outputs)
    both = result("Add", "sum", [y, high], match.shape[0])
    for reader in readers:
        reader.inputs = [both if t is y else t for t in reader.inputs]
    if ends:
        inner = gs.Variable(unique_name(match.start + "main", tensors), np.float32, y.shape)
        (maker,) = y.inputs
        maker.outputs = [inner]
        both.inputs[0].inputs[0] = inner
        both.inputs[0].outputs = [y]


def _is_bias(tensor: gs.Tensor, n: int) -> bool:
    return isinstance(tensor, gs.Constant) and tuple(tensor.shape) == (n,)
