"""GELU and quantize in one node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx import ops
from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import is_output

__all__ = ["FuseGelu"]

FUSED = {str(ops.OPERATORS[name].quantizer): name for name in ops.GELU_QUANTIZE}


@dataclass(frozen=True)
class FuseGelu:
    """A quantizer of ``Gelu(x)``, by tanh, is one node, unless others read the GELU of x too."""

    name: str = "fuse_gelu"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, _found(graph), _rewrite)


def _found(graph: gs.Graph) -> Iterator[gs.Node | Skip]:
    for node in graph.nodes:
        if node.op != "Gelu" or node.domain not in (None, ""):
            continue
        (result,) = node.outputs
        readers = [reader.op for reader in result.outputs]
        if not any(reader in ops.OPERATORS for reader in readers):
            continue
        if node.attrs.get("approximate", "none") != "tanh":
            yield Skip(node.name, "by the error function, expected tanh")
        elif len(readers) != 1 or readers[0] not in FUSED or is_output(graph, result):
            listed = ", ".join(sorted(readers))
            yield Skip(node.name, f"read by {listed}, expected one of {', '.join(FUSED)}")
        else:
            yield node


def _rewrite(graph: gs.Graph, gelu: gs.Node) -> None:
    (quantize,) = gelu.outputs[0].outputs
    quantize.op = FUSED[quantize.op]
    quantize.inputs = list(gelu.inputs)
