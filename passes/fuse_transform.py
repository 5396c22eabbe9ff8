"""Transform and quantize in one node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import is_output
from fp4dit_onnx.spec.transform import Transform

__all__ = ["FuseTransform"]

QUANTIZE = "FpQuantize"
"""The one whose integers are int8, as those of operators that do both."""


@dataclass(frozen=True)
class FuseTransform:
    """``FpQuantize(FpHadamard(x))`` is one FpHadamardQuantize, unless others read the rotated x too.

    Attributes:
        transform: one with a `quantizer`.
    """

    transform: type[Transform]

    @property
    def name(self) -> str:
        """Of the pass."""
        return f"fuse_{self.transform.name}"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, self._found(graph), self._rewrite)

    def _found(self, graph: gs.Graph) -> Iterator[gs.Node | Skip]:
        for node in graph.nodes:
            if node.op != self.transform.operator:
                continue
            (result,) = node.outputs
            readers = [reader.op for reader in result.outputs]
            if readers == [QUANTIZE] and not is_output(graph, result):
                yield node
            else:
                listed = ", ".join(sorted(readers)) or "the graph's outputs"
                yield Skip(node.name, f"read by {listed}, expected one {QUANTIZE}")

    def _rewrite(self, graph: gs.Graph, node: gs.Node) -> None:
        (quantize,) = node.outputs[0].outputs
        quantize.op = self.transform.quantizer
        quantize.attrs = {**node.attrs, **quantize.attrs}
        quantize.inputs = list(node.inputs)
