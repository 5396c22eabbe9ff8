"""Turn Reshape-Transpose-Reshape around attention's keys into one Transpose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import only_consumer, producer, same_size

__all__ = ["MendKeyTranspose"]


@dataclass(frozen=True)
class _Match:
    x: gs.Tensor
    swap: gs.Node
    last: gs.Node


@dataclass(frozen=True)
class MendKeyTranspose:
    """``Reshape([B, H, S, D] -> [B H, S, D])``, swap of the last axes, reshape back: one Transpose.

    torch.onnx's scaled_dot_product_attention flattens batch and heads before it swaps the last two
    axes of the keys, with shapes computed at run time.
    """

    name: str = "mend_key_transpose"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, _found(graph), _rewrite)


def _found(graph: gs.Graph) -> Iterator[_Match | Skip]:
    for node in graph.nodes:
        if node.op == "Transpose" and node.attrs.get("perm") == [0, 2, 1]:
            yield _match(graph, node)


def _match(graph: gs.Graph, node: gs.Node) -> _Match | Skip:
    before = producer(node.inputs[0], "Reshape")
    after = only_consumer(graph, node.outputs[0], "Reshape")
    if before is None or after is None:
        return Skip(node.name, "not between two reshapes")
    x, rows, y = before.inputs[0].shape, node.inputs[0].shape, after.outputs[0].shape
    if x is None or y is None or len(x) != 4 or len(y) != 4:
        return Skip(node.name, f"shapes {x} and {y} are not both of rank 4")
    if rows is None or not all(map(same_size, rows[1:], x[2:])):
        return Skip(node.name, f"swaps the last axes of {rows}, expected [*, {x[2]}, {x[3]}]")
    swapped = [x[0], x[1], x[3], x[2]]
    if not all(map(same_size, y, swapped)):
        return Skip(node.name, f"result of shape {y}, expected {swapped}")
    return _Match(before.inputs[0], node, after)


def _rewrite(graph: gs.Graph, match: _Match) -> None:
    outputs = list(match.last.outputs)
    match.last.outputs.clear()
    perm = {"perm": [0, 1, 3, 2]}
    graph.nodes.append(gs.Node("Transpose", match.swap.name, perm, [match.x], outputs))
