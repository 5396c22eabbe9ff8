"""Remove Squeeze nodes over an axis that is not 1, which torch.onnx emits for torch's no-op squeeze."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import constant_ints, replace_tensor

__all__ = ["MendSqueeze"]


@dataclass(frozen=True)
class MendSqueeze:
    """``Squeeze(x, axes)`` whose every axis has a known size other than 1 is ``x``.

    So is one whose result has the rank of ``x``, as torch recorded it for an axis of open size. In
    torch squeezing such an axis does nothing; in ONNX it is an error. Where the result is a graph
    output an Identity takes the Squeeze's place.
    """

    name: str = "mend_squeeze"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, _found(graph), _rewrite)


def _found(graph: gs.Graph) -> Iterator[gs.Node | Skip]:
    for node in graph.nodes:
        if node.op != "Squeeze" or len(node.inputs) < 2:
            continue
        axes, shape = constant_ints(node.inputs[1]), node.inputs[0].shape
        sizes = [shape[a] for a in axes] if axes and shape else []
        result = node.outputs[0].shape
        kept = bool(shape) and result is not None and len(result) == len(shape)
        if sizes and (kept or all(isinstance(s, int) and s != 1 for s in sizes)):
            yield node
        else:
            yield Skip(node.name, f"axes {axes} of sizes {sizes} may be squeezed")


def _rewrite(graph: gs.Graph, squeeze: gs.Node) -> None:
    replace_tensor(graph, squeeze.outputs[0], squeeze.inputs[0])
