"""Remove nodes that copy their input."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip
from fp4dit_onnx.passes.match import replace_tensor

__all__ = ["DropIdentity"]


@dataclass(frozen=True)
class DropIdentity:
    """``Identity(x)`` is ``x``, except from a graph input straight to a graph output."""

    name: str = "drop_identity"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        rewritten, skipped = 0, []
        outputs = {t.name for t in graph.outputs}
        for node in graph.nodes:
            if node.op != "Identity":
                continue
            if node.outputs[0].name in outputs:
                skipped.append(Skip(node.name, "it names a graph output"))
                continue
            replace_tensor(graph, node.outputs[0], node.inputs[0])
            node.outputs.clear()
            rewritten += 1
        graph.cleanup().toposort()
        return PassReport(self.name, rewritten, tuple(skipped))
