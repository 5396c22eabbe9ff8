"""Reading patterns off a graph: small questions that several passes ask."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

__all__ = [
    "NORM",
    "Linear",
    "constant_ints",
    "is_output",
    "linears",
    "node_names",
    "only_consumer",
    "producer",
    "replace_tensor",
    "same_size",
    "tensor_names",
    "unique_name",
]

NORM = "LayerNormalization"
WEIGHT = ".weight"


def producer(tensor: gs.Tensor, op: str) -> gs.Node | None:
    """The node that makes `tensor`, if its operator is `op`."""
    return tensor.inputs[0] if len(tensor.inputs) == 1 and tensor.inputs[0].op == op else None


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether `tensor` is an output of `graph`."""
    return any(t is tensor for t in graph.outputs)


def only_consumer(graph: gs.Graph, tensor: gs.Tensor, op: str) -> gs.Node | None:
    """The node that reads `tensor`, if its operator is `op` and nothing else needs the tensor."""
    if len(tensor.outputs) != 1 or is_output(graph, tensor):
        return None
    return tensor.outputs[0] if tensor.outputs[0].op == op else None


def constant_ints(tensor: gs.Tensor) -> list[int] | None:
    """The values of a constant integer tensor (an initializer or a Constant node), else None."""
    node = producer(tensor, "Constant")
    constant = node.attrs.get("value") if node else tensor
    if not isinstance(constant, gs.Constant) or not np.issubdtype(constant.dtype, np.integer):
        return None
    return [int(v) for v in np.asarray(constant.values).reshape(-1)]


def same_size(a: int | str | None, b: int | str | None) -> bool:
    """Whether two sizes of axes are known to be equal; two unknown ones are not."""
    return a == b and a not in (None, "")


def replace_tensor(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every reader of `old` read `new`, and nothing make `old` any more.

    A graph output keeps its name: an Identity, named like the node before, makes it from `new`.
    """
    (maker,) = old.inputs
    for node in list(old.outputs):
        node.inputs = [new if t is old else t for t in node.inputs]
    old.inputs.clear()
    if is_output(graph, old):
        graph.nodes.append(gs.Node("Identity", maker.name, {}, [new], [old]))


def node_names(graph: gs.Graph) -> set[str]:
    """Names of the nodes of `graph`."""
    return {node.name for node in graph.nodes}


def tensor_names(graph: gs.Graph) -> set[str]:
    """Names of the tensors of `graph`."""
    inner = {t.name for node in graph.nodes for t in (*node.inputs, *node.outputs)}
    return inner | {t.name for t in (*graph.inputs, *graph.outputs)}


def unique_name(wanted: str, taken: Container[str]) -> str:
    """`wanted`, or with the first number from 2 on that makes it a name not yet `taken`."""
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


@dataclass(frozen=True)
class Linear:
    """``MatMul(x, Transpose(weight)) [+ bias]``, the canonical form of a torch linear.

    Attributes:
        layer: torch name of the module.
        matmul: the product.
        transpose: of the weight, perm [1, 0].
        weight: float constant [N, K].
    """

    layer: str
    matmul: gs.Node
    transpose: gs.Node
    weight: gs.Constant


def linears(graph: gs.Graph) -> Iterator[Linear]:
    """Every canonical linear of `graph`, in node order."""
    for node in graph.nodes:
        if node.op != "MatMul":
            continue
        transpose = producer(node.inputs[1], "Transpose")
        if transpose is None or transpose.attrs.get("perm") != [1, 0]:
            continue
        weight = transpose.inputs[0]
        if isinstance(weight, gs.Constant) and weight.name.endswith(WEIGHT):
            yield Linear(weight.name.removesuffix(WEIGHT), node, transpose, weight)
