"""Reading patterns off a graph: small questions that several passes ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

__all__ = ["Linear", "constant_ints", "linears", "only_consumer", "producer", "replace_tensor"]

WEIGHT = ".weight"


def producer(tensor: gs.Tensor, op: str) -> gs.Node | None:
    """The node that makes `tensor`, if its operator is `op`."""
    return tensor.inputs[0] if len(tensor.inputs) == 1 and tensor.inputs[0].op == op else None


def only_consumer(tensor: gs.Tensor, op: str) -> gs.Node | None:
    """The one node that reads `tensor`, if there is just one and its operator is `op`."""
    return tensor.outputs[0] if len(tensor.outputs) == 1 and tensor.outputs[0].op == op else None


def constant_ints(tensor: gs.Tensor) -> list[int] | None:
    """The values of a constant integer tensor (an initializer or a Constant node), else None."""
    node = producer(tensor, "Constant")
    constant = node.attrs.get("value") if node else tensor
    if not isinstance(constant, gs.Constant) or not np.issubdtype(constant.dtype, np.integer):
        return None
    return [int(v) for v in np.asarray(constant.values).reshape(-1)]


def replace_tensor(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every reader of `old`, and the graph's outputs, read `new`."""
    for node in list(old.outputs):
        node.inputs = [new if t is old else t for t in node.inputs]
    graph.outputs = [new if t is old else t for t in graph.outputs]


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
