"""Compute what depends on small constants and known shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator

from fp4dit_onnx.passes.base import PassReport
from fp4dit_onnx.passes.match import producer

__all__ = ["FoldConstants"]

LARGEST = 1 << 14
"""Elements of a folded result; larger ones would be stored instead of computed."""

RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"}
)
"""Operators whose result is new every time, whatever they read."""


@dataclass(frozen=True)
class FoldConstants:
    """Replace nodes whose inputs are constants, known sizes or known types by their value.

    Attributes:
        parameters: names of the model's parameters, which are never folded: a weight must reach the
            file under its own name and layout.
    """

    parameters: frozenset[str]
    name: str = "fold_constants"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        graph.toposort()
        rewritten = 0
        for node in list(graph.nodes):
            value = _known_sizes(node)
            if value is None:
                value = self._known_cast(node)
            if value is None and self._is_constant(node):
                value = _evaluate(node, graph.opset)
            if value is None or value.size > LARGEST:
                continue
            output = node.outputs[0]
            node.outputs.clear()
            output.to_constant(value)
            rewritten += 1
        graph.cleanup().toposort()
        return PassReport(self.name, rewritten)

    def _may_fold(self, tensor: gs.Tensor) -> bool:
        return isinstance(tensor, gs.Constant) and tensor.name not in self.parameters

    def _is_constant(self, node: gs.Node) -> bool:
        return (
            node.domain in (None, "")
            and node.op not in RANDOM
            and (bool(node.inputs) or node.op == "Constant")
            and len(node.outputs) == 1
            and not any(isinstance(value, gs.Graph) for value in node.attrs.values())
            and all(self._may_fold(t) and t.values.size <= LARGEST for t in node.inputs)
        )

    def _known_cast(self, node: gs.Node) -> np.ndarray | None:
        """Value of ``CastLike(constant, x)`` where only the type of x matters."""
        if node.op != "CastLike" or not self._may_fold(node.inputs[0]):
            return None
        dtype = node.inputs[1].dtype
        return None if dtype is None else np.asarray(node.inputs[0].values).astype(dtype)


def _known_sizes(node: gs.Node) -> np.ndarray | None:
    """Value of a Shape, or of a Gather from one, whose sizes are all known."""
    shape, index = (node, None) if node.op == "Shape" else _gathered_shape(node)
    if shape is None or shape.inputs[0].shape is None:
        return None
    sizes = list(shape.inputs[0].shape)[shape.attrs.get("start", 0) : shape.attrs.get("end")]
    if index is not None:
        sizes = [sizes[i] for i in index.reshape(-1)]
    if not all(isinstance(s, int) for s in sizes):
        return None
    return np.array(sizes, np.int64).reshape(-1 if index is None else index.shape)


def _gathered_shape(node: gs.Node) -> tuple[gs.Node | None, np.ndarray | None]:
    if node.op != "Gather" or not isinstance(node.inputs[1], gs.Constant):
        return None, None
    return producer(node.inputs[0], "Shape"), np.asarray(node.inputs[1].values)


def _evaluate(node: gs.Node, opset: int) -> np.ndarray | None:
    """The value of `node`, if that is a tensor."""
    output = gs.Variable("value")
    copy = gs.Node(node.op, node.name, dict(node.attrs), list(node.inputs), [output])
    proto = gs.export_onnx(gs.Graph([copy], outputs=[output], opset=opset), do_type_check=False)
    for tensor in node.inputs:  # the copy must leave no trace among the constants' readers
        while copy in tensor.outputs:
            tensor.outputs.remove(copy)
    (value,) = cast("list[object]", ReferenceEvaluator(proto).run(None, {}))
    return None if isinstance(value, list) else np.asarray(value)
