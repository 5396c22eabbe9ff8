"""A layer's vector of factors goes into the scale and shift of adaLN, or into a norm's own weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import (
    NORM,
    is_output,
    node_names,
    producer,
    replace_tensor,
    same_size,
    tensor_names,
    unique_name,
)
from fp4dit_onnx.spec.diagonal import Diagonal
from fp4dit_onnx.spec.transforms import INPUT, transform_of

__all__ = ["FoldFactor"]


@dataclass(frozen=True)
class FoldFactor:
    """``(u * gain + shift) * factor`` is ``u * (gain * factor) + shift * factor``.

    So the product is one for each sample, not for each token, and what is left of it is a norm, its
    scale and its shift, as `FuseNorm` knows it. Where only a gain or the norm's own weights are there,
    likewise.
    """

    name: str = "fold_factor"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, _found(graph), _rewrite)


@dataclass(frozen=True)
class _Match:
    """A product with a factor, and where else it can be: nodes and places of their inputs."""

    mul: gs.Node
    places: tuple[tuple[gs.Node, int], ...]


def _found(graph: gs.Graph) -> Iterator[_Match | Skip]:
    for node in graph.nodes:
        if _is_factor(node) and (match := _match(graph, node)):
            yield match


def _is_factor(node: gs.Node) -> bool:
    rest = [tensor.name for tensor in node.inputs[1:]]
    return isinstance(transform_of(node.op, node.attrs, rest), Diagonal)


def _match(graph: gs.Graph, mul: gs.Node) -> _Match | Skip | None:
    """Where the factor can go; None where its input is of no such form."""
    y = mul.inputs[0]
    chain, places = [y], []
    if (add := producer(y, "Add")) is not None:
        narrow = _narrow(add)
        if narrow is None:
            return None
        places.append((add, narrow))
        y = add.inputs[1 - narrow]
        chain.append(y)
    if (scaled := producer(y, "Mul")) is not None and (narrow := _narrow(scaled)) is not None:
        places.append((scaled, narrow))
    elif (norm := producer(y, NORM)) is not None and add is None:
        places += [(norm, place) for place in range(1, len(norm.inputs))]
    else:
        return None
    if any(len(tensor.outputs) != 1 or is_output(graph, tensor) for tensor in chain):
        return Skip(mul.name, "others read what it multiplies")
    return _Match(mul, tuple(places))


def _narrow(node: gs.Node) -> int | None:
    """Which of two operands is as wide as the other, and the same for all of its rows; None if none."""
    for place in (0, 1):
        one, other = node.inputs[place].shape, node.inputs[1 - place].shape
        if not one or not other or len(other) < 2 or not same_size(one[-1], other[-1]):
            continue
        if len(one) <= len(other) and (len(one) == 1 or one[-2] == 1 != other[-2]):
            return place
    return None


def _rewrite(graph: gs.Graph, match: _Match) -> None:
    x, factor = match.mul.inputs
    replace_tensor(graph, match.mul.outputs[0], x)
    own = factor.name.rpartition(INPUT)[0] + INPUT.rstrip(".")
    for node, place in match.places:
        part = "shift" if node.op == "Add" or place == 2 else "gain"
        before = node.inputs[place]
        name = unique_name(f"{own}.{part}", tensor_names(graph))
        after = gs.Variable(name, before.dtype, before.shape)
        node.inputs[place] = after
        title = unique_name(f"{own}/Mul_{part}", node_names(graph))
        graph.nodes.append(gs.Node("Mul", title, {}, [before, factor], [after]))
