"""Rotate and quantize in one node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx import ops
from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import is_output

__all__ = ["FuseHadamard"]

QUANTIZE = "FpQuantize"
"""The one whose integers are int8, as FpHadamardQuantize's are."""


@dataclass(frozen=True)
class FuseHadamard:
    """``FpQuantize(FpHadamard(x))`` is one FpHadamardQuantize, unless others read the rotated x too."""

    name: str = "fuse_hadamard"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, _found(graph), _rewrite)


def _found(graph: gs.Graph) -> Iterator[gs.Node | Skip]:
    for node in graph.nodes:
        if node.op != ops.HADAMARD:
            continue
        (rotated,) = node.outputs
        readers = [reader.op for reader in rotated.outputs]
        if readers == [QUANTIZE] and not is_output(graph, rotated):
            yield node
        else:
            listed = ", ".join(sorted(readers)) or "the graph's outputs"
            yield Skip(node.name, f"read by {listed}, expected one {QUANTIZE}")


def _rewrite(graph: gs.Graph, node: gs.Node) -> None:
    (quantize,) = node.outputs[0].outputs
    quantize.op = ops.HADAMARD_QUANTIZE
    quantize.attrs = {**node.attrs, **quantize.attrs}
    quantize.inputs = list(node.inputs)
