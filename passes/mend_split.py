"""Turn SplitToSequence and its SequenceAt readers into one Split."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip
from fp4dit_onnx.passes.match import constant_ints

__all__ = ["MendSplit"]


@dataclass(frozen=True)
class _Match:
    split: gs.Node
    readers: tuple[gs.Node, ...]
    parts: int


@dataclass(frozen=True)
class MendSplit:
    """``SequenceAt(SplitToSequence(x, size), i)`` is output i of ``Split(x)``.

    Sequences are tensors of unknown shape to every later tool; a Split is not.
    """

    name: str = "mend_split"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        matches: list[_Match] = []
        skipped: list[Skip] = []
        for node in graph.nodes:
            if node.op == "SplitToSequence":
                found = _match(node)
                (matches if isinstance(found, _Match) else skipped).append(found)  # type: ignore[arg-type]
        for match in matches:
            _rewrite(graph, match)
        graph.cleanup().toposort()
        return PassReport(self.name, len(matches), tuple(skipped))


def _match(node: gs.Node) -> _Match | Skip:
    x, readers = node.inputs[0], tuple(node.outputs[0].outputs)
    axis, shape = int(node.attrs.get("axis", 0)), x.shape
    size = constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    extent = shape[axis] if shape else None
    if size is None or len(size) != 1 or not isinstance(extent, int) or extent % size[0]:
        return Skip(
            node.name, f"axis {axis} of size {extent} is not cut into equal parts by {size}"
        )
    if any(r.op != "SequenceAt" or constant_ints(r.inputs[1]) is None for r in readers):
        return Skip(node.name, f"read by {', '.join(r.op for r in readers)}, expected SequenceAt")
    return _Match(node, readers, extent // size[0])


def _rewrite(graph: gs.Graph, match: _Match) -> None:
    x, axis = match.split.inputs[0], int(match.split.attrs.get("axis", 0))
    shape = list(x.shape)
    shape[axis] //= match.parts
    outputs = [
        gs.Variable(f"{match.split.name}.{i}", x.dtype, list(shape)) for i in range(match.parts)
    ]
    for reader in match.readers:
        index = (constant_ints(reader.inputs[1]) or [0])[0]
        outputs[index] = reader.outputs[0]
        reader.outputs.clear()
    attributes = {"axis": axis, "num_outputs": match.parts}
    graph.nodes.append(gs.Node("Split", match.split.name, attributes, [x], outputs))
    match.split.outputs.clear()
