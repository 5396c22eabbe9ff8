"""Layer norm, its scale and shift, and quantize in one node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fp4dit_onnx import ops
from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import (
    NORM,
    is_output,
    producer,
    same_size,
    tensor_names,
    unique_name,
)

__all__ = ["FuseNorm"]

FUSED = {str(ops.OPERATORS[name].quantizer): name for name in ops.NORM_QUANTIZE}


@dataclass(frozen=True)
class FuseNorm:
    """A quantizer of ``LayerNormalization(x)``, or of that times one tensor plus another, is one node.

    The other two are the norm's own weights, or what adaLN makes of the timestep; not both.

    Attributes:
        parameters: names of the network's tensors, whose values may be still to come.
    """

    parameters: frozenset[str] = frozenset()
    name: str = "fuse_norm"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, self._found(graph), _rewrite)

    def _found(self, graph: gs.Graph) -> Iterator[_Match | Skip]:
        for node in graph.nodes:
            if node.op in FUSED and (match := _match(graph, node, self.parameters)):
                yield match


@dataclass(frozen=True)
class _Match:
    quantize: gs.Node
    norm: gs.Node
    gain: gs.Tensor
    shift: gs.Tensor | None


def _match(graph: gs.Graph, quantize: gs.Node, parameters: frozenset[str]) -> _Match | Skip | None:
    """What `quantize` reads, if a norm makes it; None if none does."""
    (y,) = quantize.inputs[:1]
    chain, scaled, shift = [y], y, None
    if add := producer(y, "Add"):
        scaled = next((t for t in add.inputs if producer(t, "Mul")), y)
        shift = _other(add, scaled)
        chain.append(scaled)
    unit, gain = y, None
    if add and (mul := producer(scaled, "Mul")):
        unit = next((t for t in mul.inputs if producer(t, NORM)), y)
        gain = _other(mul, unit)
        chain.append(unit)
    norm = producer(unit, NORM)
    if norm is None:
        return None
    if any(len(tensor.outputs) != 1 or is_output(graph, tensor) for tensor in chain):
        return Skip(norm.name, "others read what is between it and the quantizer")
    if norm.attrs.get("axis", -1) != -1 or norm.attrs.get("stash_type", 1) != 1:
        return Skip(norm.name, "not over the last axis in float32")
    own, bias = norm.inputs[1], norm.inputs[2] if len(norm.inputs) > 2 else None
    if gain is None:
        gain, shift = own, bias
    elif bias is not None or own.name in parameters or not _is_ones(own):
        return Skip(norm.name, "has weights of its own beside a scale and a shift")
    x = norm.inputs[0]
    for tensor in (gain, shift):
        if tensor is not None and not _is_broadcast(tensor, x):
            return Skip(norm.name, f"{tensor.name} has shape {tensor.shape}, and x {x.shape}")
    return _Match(quantize, norm, gain, shift)


def _other(node: gs.Node, tensor: gs.Tensor) -> gs.Tensor:
    return node.inputs[1] if node.inputs[0] is tensor else node.inputs[0]


def _is_ones(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) and bool(np.all(tensor.values == 1))


def _is_broadcast(tensor: gs.Tensor, x: gs.Tensor) -> bool:
    """Whether it has x's width, and before it some of x's sizes in a row, and sizes of one."""
    if not tensor.shape or not x.shape or len(tensor.shape) > len(x.shape):
        return False
    pairs = list(zip(reversed(tensor.shape), reversed(x.shape), strict=False))
    whole = [same_size(own, size) for own, size in pairs]
    parts = "".join("x" if same else "1" for same in whole[1:]).strip("1")
    ones = all(same or own == 1 for same, (own, _) in zip(whole, pairs, strict=True))
    return whole[0] and ones and "1" not in parts


def _rewrite(graph: gs.Graph, match: _Match) -> None:
    norm, quantize, shift = match.norm, match.quantize, match.shift
    if shift is None:
        name = unique_name(f"{norm.name}.shift", tensor_names(graph))
        shift = gs.Constant(name, np.zeros(match.gain.shape[-1], np.float32))
    quantize.op = FUSED[quantize.op]
    quantize.inputs = [norm.inputs[0], match.gain, shift]
    epsilon = float(norm.attrs.get("epsilon", 1e-5))
    quantize.attrs = {"epsilon": epsilon, **quantize.attrs}
