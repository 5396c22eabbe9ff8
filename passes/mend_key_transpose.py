"""Turn Reshape-Transpose-Reshape around attention's keys into one Transpose."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip
from fp4dit_onnx.passes.match import only_consumer

__all__ = ["MendKeyTranspose"]


@dataclass(frozen=True)
class _Match:
    first: gs.Node
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
        matches: list[_Match] = []
        skipped: list[Skip] = []
        for node in graph.nodes:
            if node.op == "Transpose" and node.attrs.get("perm") == [0, 2, 1]:
                found = _match(node)
                (matches if isinstance(found, _Match) else skipped).append(found)  # type: ignore[arg-type]
        for match in matches:
            graph.nodes.append(
                gs.Node(
                    "Transpose",
                    match.first.name,
                    {"perm": [0, 1, 3, 2]},
                    [match.first.inputs[0]],
                    list(match.last.outputs),
                )
            )
            match.last.outputs.clear()
        graph.cleanup().toposort()
        return PassReport(self.name, len(matches), tuple(skipped))


def _match(node: gs.Node) -> _Match | Skip:
    before = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    after = only_consumer(node.outputs[0], "Reshape")
    if before is None or before.op != "Reshape" or after is None:
        return Skip(node.name, "not between two reshapes")
    x, y = before.inputs[0], after.outputs[0]
    if x.shape is None or y.shape is None or len(x.shape) != 4 or len(y.shape) != 4:
        return Skip(node.name, f"shapes {x.shape} and {y.shape} are not both of rank 4")
    swapped = [x.shape[0], x.shape[1], x.shape[3], x.shape[2]]
    if list(y.shape) != swapped:
        return Skip(node.name, f"result of shape {y.shape}, expected {swapped}")
    return _Match(before, after)
