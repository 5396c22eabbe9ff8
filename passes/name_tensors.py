"""Name tensors after the node that makes them, so that a viewer shows where a value comes from."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport
from fp4dit_onnx.passes.fuse_linear import ONE

__all__ = ["NameTensors"]


@dataclass(frozen=True)
class NameTensors:
    """What the exporter called ``val_17`` is called after its node, numbered from the second output on.

    Node names become unique. Graph inputs and outputs, the parameters, and the tensors that the
    quantizing passes made keep their names.

    Attributes:
        parameters: names of the model's parameters.
        layers: names of the quantized layers, which begin the names of their own tensors.
    """

    parameters: frozenset[str]
    layers: frozenset[str]
    name: str = "name_tensors"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        rewritten = 0
        keep = {t.name for t in (*graph.inputs, *graph.outputs)} | self.parameters
        taken = set(keep)
        for node in graph.nodes:
            name = _free(node.name or node.op, taken)
            rewritten += name != node.name
            node.name = name
            for i, tensor in enumerate(node.outputs):
                wanted = name if i == 0 else f"{name}.{i}"
                if tensor.name not in keep and not self._is_own(tensor):
                    rewritten += tensor.name != wanted
                    tensor.name = wanted
        return PassReport(self.name, rewritten + self._name_constants(graph, taken))

    def _is_own(self, tensor: gs.Tensor) -> bool:
        layer, _, _ = tensor.name.rpartition(".")
        return layer.removesuffix(".input").removesuffix(".weight") in self.layers

    def _name_constants(self, graph: gs.Graph, taken: set[str]) -> int:
        """Folded constants are called after the first node that reads them."""
        renamed = 0
        seen: set[int] = set()
        for node in graph.nodes:
            for i, tensor in enumerate(node.inputs):
                if not isinstance(tensor, gs.Constant) or id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                own = tensor.name in self.parameters or self._is_own(tensor)
                if not own and "/" not in tensor.name and tensor.name != ONE:
                    tensor.name = _free(f"{node.name}.in{i}", taken)
                    renamed += 1
        return renamed


def _free(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate
