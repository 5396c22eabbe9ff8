"""Remove nodes that copy their input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import is_output, replace_tensor

__all__ = ["DropIdentity"]


@dataclass(frozen=True)
class DropIdentity:
    """``Identity(x)`` is ``x``, except where it names a graph output."""

    name: str = "drop_identity"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, _found(graph), _rewrite)


def _found(graph: gs.Graph) -> Iterator[gs.Node | Skip]:
    for node in graph.nodes:
        if node.op == "Identity":
            named = is_output(graph, node.outputs[0])
            yield Skip(node.name, "it names a graph output") if named else node


def _rewrite(graph: gs.Graph, identity: gs.Node) -> None:
    replace_tensor(graph, identity.outputs[0], identity.inputs[0])
