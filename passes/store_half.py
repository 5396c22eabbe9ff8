"""Store large float tensors in float16; the graph computes in float32 as before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from fp4dit_onnx.bundle.skeleton import is_placeholder, placeholder
from fp4dit_onnx.passes.base import PassReport, rewrite_all
from fp4dit_onnx.passes.match import node_names, tensor_names, unique_name

__all__ = ["StoreHalf"]

SMALLEST = 4096
"""Elements; smaller tensors are not worth a node."""


@dataclass(frozen=True)
class StoreHalf:
    """A float constant of many elements becomes ``Cast(float16 constant)``.

    A table that is only gathered from is cast after the Gather, so that a runtime which folds
    constants does not hold it in float32.
    """

    parameters: frozenset[str]
    name: str = "store_half"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, self._found(graph), _rewrite)

    def _found(self, graph: gs.Graph) -> Iterator[gs.Constant]:
        for tensor in graph.tensors().values():
            large = isinstance(tensor, gs.Constant) and prod(tensor.shape) >= SMALLEST
            if large and tensor.dtype == np.float32 and tensor.name in self.parameters:
                yield tensor


def _rewrite(graph: gs.Graph, tensor: gs.Constant) -> None:
    half = _half(tensor)
    nodes, tensors = node_names(graph), tensor_names(graph)
    for node in list(tensor.outputs):
        if node.op == "Gather" and node.inputs[0] is tensor:
            result = node.outputs[0]
            rows = gs.Variable(
                unique_name(f"{result.name}.half", tensors), np.float16, result.shape
            )
            node.inputs[0], node.outputs[0] = half, rows
            before, after = rows, result
        else:
            wide = gs.Variable(
                unique_name(f"{tensor.name}.value", tensors), np.float32, tensor.shape
            )
            node.inputs = [wide if t is tensor else t for t in node.inputs]
            before, after = half, wide
        name = unique_name(f"{node.name}/Cast", nodes)
        nodes.add(name)
        tensors.update((before.name, after.name))
        kind = {"to": onnx.TensorProto.FLOAT}
        graph.nodes.append(gs.Node("Cast", name, kind, [before], [after]))


def _half(tensor: gs.Constant) -> gs.Constant:
    """The same constant in float16, under its own name; a placeholder stays one."""
    lazy = tensor._values
    if isinstance(lazy, LazyValues) and is_placeholder(lazy.tensor):
        absent = placeholder(tensor.name, list(tensor.shape), onnx.TensorProto.FLOAT16)
        return gs.Constant(tensor.name, LazyValues(absent))
    return gs.Constant(tensor.name, np.asarray(tensor.values).astype(np.float16))
