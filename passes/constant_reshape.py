"""Give Reshape nodes a constant target where 0 and -1 can say it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip

__all__ = ["ConstantReshape"]


@dataclass(frozen=True)
class ConstantReshape:
    """A target shape computed at run time from single sizes becomes a constant.

    A dynamic size that the input has on the same axis is written 0 (copy), one more may be -1
    (what is left). torch.onnx computes each target with a handful of nodes instead.
    """

    name: str = "constant_reshape"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        rewritten, skipped = 0, []
        for node in graph.nodes:
            if node.op != "Reshape" or isinstance(node.inputs[1], gs.Constant):
                continue
            x, y = node.inputs[0].shape, node.outputs[0].shape
            target = _target(x, y) if x is not None and y is not None else None
            if target is None:
                skipped.append(Skip(node.name, f"from {x} to {y}: more than one size left open"))
                continue
            node.inputs[1] = gs.Constant(f"{node.name}.shape", np.array(target, np.int64))
            node.attrs["allowzero"] = 0
            rewritten += 1
        graph.cleanup().toposort()
        return PassReport(self.name, rewritten, tuple(skipped))


def _target(x: list[int | str], y: list[int | str]) -> list[int] | None:
    target = [d if isinstance(d, int) else _open_size(x, d, axis) for axis, d in enumerate(y)]
    unknown = target.count(-1)
    if 0 in y or unknown > 1:  # an empty tensor, or more than one size to infer
        return None
    return target


def _open_size(x: list[int | str], size: str, axis: int) -> int:
    return 0 if axis < len(x) and x[axis] == size else -1
