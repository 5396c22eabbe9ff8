"""Name tensors after the node that makes them, so that a viewer shows where a value comes from."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport
from fp4dit_onnx.passes.fuse_linear import ONE
from fp4dit_onnx.passes.match import unique_name

__all__ = ["NameTensors"]


OWN = ("", ".input", ".weight", ".branch", ".lora")
"""Between the name of a layer and the last part of the names of its tensors."""


@dataclass(frozen=True)
class NameTensors:
    """What the exporter called ``val_17`` is named after its node, numbered from the second output on.

    Node names become unique. Constants are named after the first node that reads them. Graph inputs
    and outputs, the parameters, and the tensors that the quantizing passes made keep their names.

    Attributes:
        parameters: names of the model's parameters.
        layers: names of the quantized layers and of attentions' quantized parts, which begin the
            names of their own tensors.
    """

    parameters: frozenset[str]
    layers: frozenset[str]
    name: str = "name_tensors"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        keep = self._kept(graph)
        taken = set(keep)

        def renamed(item: gs.Node | gs.Tensor, wanted: str) -> bool:
            before, item.name = item.name, unique_name(wanted, taken)
            taken.add(item.name)
            return bool(item.name != before)

        rewritten = 0
        for node in graph.nodes:
            rewritten += renamed(node, node.name or node.op)
            for i, tensor in enumerate(node.outputs):
                if tensor.name in keep:
                    continue
                if i == 0:
                    rewritten += tensor.name != node.name
                    tensor.name = node.name
                else:
                    rewritten += renamed(tensor, f"{node.name}.{i}")
        for tensor, wanted in _constants(graph):
            if tensor.name not in keep:
                rewritten += renamed(tensor, wanted)
        return PassReport(self.name, rewritten)

    def _kept(self, graph: gs.Graph) -> frozenset[str]:
        """Names that stay; the empty one stands for an output left out."""
        inner = (t for node in graph.nodes for t in (*node.inputs, *node.outputs))
        own = {t.name for t in inner if self._is_own(t)}
        ends = {t.name for t in (*graph.inputs, *graph.outputs)}
        return frozenset(own | ends | self.parameters | {ONE, ""})

    def _is_own(self, tensor: gs.Tensor) -> bool:
        layer, _, _ = tensor.name.rpartition(".")
        return any(layer.removesuffix(end) in self.layers for end in OWN)


def _constants(graph: gs.Graph) -> list[tuple[gs.Constant, str]]:
    """Each constant and the name to give it, after the first node that reads it."""
    found: dict[int, tuple[gs.Constant, str]] = {}
    for node in graph.nodes:
        for i, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant) and id(tensor) not in found:
                named = tensor.name.startswith(f"{node.name}.")
                found[id(tensor)] = (tensor, tensor.name if named else f"{node.name}.in{i}")
    return list(found.values())
