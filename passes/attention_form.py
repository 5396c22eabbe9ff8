"""The form of attention in a graph: ``Softmax(q k^T * scale + bias) v``, and where its operands are."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.match import only_consumer, producer

__all__ = ["HEADS_FIRST", "AttentionForm", "Operand", "attention_of"]

HEADS_FIRST = [0, 2, 1, 3]  # [B, S, H, D] -> [B, H, S, D]
AS_THEY_ARE = [0, 1, 2, 3]


@dataclass(frozen=True)
class Operand:
    """What is multiplied in an attention: a tensor, and what becomes of it on the way.

    Attributes:
        tensor: before transposes and factors.
        reader: the node on the way that reads it, the product if there is nothing between.
        axes: the tensor's, in the order in which they are batch, head, token and channel.
        factor: product of the factors.
    """

    tensor: gs.Tensor
    reader: gs.Node
    axes: list[int]
    factor: float

    @property
    def is_tokens_first(self) -> bool:
        """Whether the tensor is [batch, token, head, channel]."""
        return self.axes == HEADS_FIRST

    @property
    def is_heads_first(self) -> bool:
        """Whether the tensor is [batch, head, token, channel]."""
        return self.axes == AS_THEY_ARE


@dataclass(frozen=True)
class AttentionForm:
    """An attention around a Softmax.

    Attributes:
        mixed: the product of probabilities and values.
        bias: added to the scores, None for nothing.
        q: queries.
        k: keys.
        v: values.
    """

    mixed: gs.Node
    bias: gs.Tensor | None
    q: Operand
    k: Operand
    v: Operand


def attention_of(graph: gs.Graph, softmax: gs.Node) -> AttentionForm | None:
    """The attention that `softmax` is of; None where it is no product's that is multiplied again."""
    scores, bias = softmax.inputs[0], None
    if add := producer(scores, "Add"):
        scores, bias = add.inputs
        if producer(scores, "MatMul") is None:
            scores, bias = bias, scores
    product = producer(scores, "MatMul")
    mixed = only_consumer(graph, softmax.outputs[0], "MatMul")
    if product is None or mixed is None:
        return None
    q, k, v = _operand(product, 0), _operand(product, 1), _operand(mixed, 1)
    batch, head, channel, token = k.axes  # the product reads the keys as [B, H, D, L]
    keys = Operand(k.tensor, k.reader, [batch, head, token, channel], k.factor)
    return AttentionForm(mixed, bias, q, keys, v)


def _operand(product: gs.Node, place: int) -> Operand:
    """Back from an input of a product through transposes of four axes and constant factors."""
    tensor, reader, axes, factor = product.inputs[place], product, AS_THEY_ARE, 1.0
    while True:
        if (node := producer(tensor, "Transpose")) and len(node.attrs["perm"]) == len(axes):
            axes = [node.attrs["perm"][axis] for axis in axes]
            tensor, reader = node.inputs[0], node
        elif (node := producer(tensor, "Mul")) and (constant := _scalar(node)) is not None:
            factor *= float(np.asarray(constant.values).reshape(-1)[0])
            tensor, reader = next(t for t in node.inputs if t is not constant), node
        else:
            return Operand(tensor, reader, list(axes), factor)


def _scalar(node: gs.Node) -> gs.Constant | None:
    """The one input of `node` that is a constant of one element."""
    constants = [t for t in node.inputs if isinstance(t, gs.Constant)]
    return constants[0] if len(constants) == 1 and prod(constants[0].shape) == 1 else None
