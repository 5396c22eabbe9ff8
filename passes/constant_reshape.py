"""Give Reshape nodes a constant target where 0 and -1 can say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import same_size, tensor_names, unique_name

__all__ = ["ConstantReshape"]


Size = int | str | None


@dataclass(frozen=True)
class _Match:
    reshape: gs.Node
    target: tuple[int, ...]


@dataclass(frozen=True)
class ConstantReshape:
    """A target shape computed at run time from single sizes becomes a constant.

    A dynamic size that the input has on the same axis is written 0 (copy), one more may be -1
    (what is left). torch.onnx computes each target with a handful of nodes instead.
    """

    name: str = "constant_reshape"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, _found(graph), _rewrite)


def _found(graph: gs.Graph) -> Iterator[_Match | Skip]:
    for node in graph.nodes:
        if node.op != "Reshape" or isinstance(node.inputs[1], gs.Constant):
            continue
        x, y = node.inputs[0].shape, node.outputs[0].shape
        target = _target(x, y) if x is not None and y is not None else None
        if target is None:
            yield Skip(node.name, f"from {x} to {y}: more than one size left open")
        else:
            yield _Match(node, target)


def _target(x: Sequence[Size], y: Sequence[Size]) -> tuple[int, ...] | None:
    target = tuple(d if isinstance(d, int) else _open_size(x, d, axis) for axis, d in enumerate(y))
    unknown = target.count(-1)
    if 0 in y or unknown > 1:  # an empty tensor, or more than one size to infer
        return None
    return target


def _open_size(x: Sequence[Size], size: Size, axis: int) -> int:
    return 0 if axis < len(x) and same_size(x[axis], size) else -1


def _rewrite(graph: gs.Graph, match: _Match) -> None:
    node = match.reshape
    name = unique_name(f"{node.name or node.op}.shape", tensor_names(graph))
    node.inputs[1] = gs.Constant(name, np.array(match.target, np.int64))
    node.attrs["allowzero"] = 0
