"""Turn SplitToSequence and its SequenceAt readers into one Split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import (
    constant_ints,
    is_output,
    replace_tensor,
    tensor_names,
    unique_name,
)

__all__ = ["MendSplit"]


@dataclass(frozen=True)
class _Match:
    split: gs.Node
    axis: int
    parts: int
    readers: tuple[tuple[gs.Node, int], ...]
    """Each with the part that it reads."""


@dataclass(frozen=True)
class MendSplit:
    """``SequenceAt(SplitToSequence(x, size), i)`` is output i of ``Split(x)``.

    Sequences are tensors of unknown shape to every later tool; a Split is not.
    """

    name: str = "mend_split"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, _found(graph), _rewrite)


def _found(graph: gs.Graph) -> Iterator[_Match | Skip]:
    for node in graph.nodes:
        if node.op == "SplitToSequence":
            yield _match(graph, node)


def _match(graph: gs.Graph, node: gs.Node) -> _Match | Skip:
    sequence, shape = node.outputs[0], node.inputs[0].shape
    axis = int(node.attrs.get("axis", 0))
    size = constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    extent = shape[axis] if shape else None
    if size is None or len(size) != 1 or not isinstance(extent, int) or extent % size[0]:
        return Skip(
            node.name, f"axis {axis} of size {extent} is not cut into equal parts by {size}"
        )
    if is_output(graph, sequence):
        return Skip(node.name, "its sequence is a graph output")
    parts, readers = extent // size[0], []
    for reader in sequence.outputs:
        index = constant_ints(reader.inputs[1]) if reader.op == "SequenceAt" else None
        if index is None:
            ops = ", ".join(r.op for r in sequence.outputs)
            return Skip(node.name, f"read by {ops}, expected SequenceAt of a constant index")
        if not -parts <= index[0] < parts:
            return Skip(node.name, f"part {index[0]} of {parts} is read")
        readers.append((reader, index[0] % parts))
    return _Match(node, axis, parts, tuple(readers))


def _rewrite(graph: gs.Graph, match: _Match) -> None:
    x, name = match.split.inputs[0], match.split.name
    shape = list(x.shape)
    shape[match.axis] //= match.parts
    parts: dict[int, gs.Tensor] = {}
    for reader, index in match.readers:
        if index in parts:
            replace_tensor(graph, reader.outputs[0], parts[index])
        else:
            parts[index] = reader.outputs[0]
            reader.outputs.clear()
    taken = tensor_names(graph)
    for index in range(match.parts):
        if index not in parts:  # nobody reads it
            own = unique_name(f"{name or match.split.op}.{index}", taken)
            parts[index] = gs.Variable(own, x.dtype, list(shape))
    attributes = {"axis": match.axis, "num_outputs": match.parts}
    outputs = [parts[index] for index in range(match.parts)]
    match.split.outputs.clear()
    graph.nodes.append(gs.Node("Split", name, attributes, [x], outputs))
