"""Insert online quantize-dequantize pairs on attention's q, k and v."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.passes.attention_form import HEADS_FIRST, Operand, attention_of
from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.insert_qdq import insert_pair
from fp4dit_onnx.passes.match import node_names, tensor_names, unique_name
from fp4dit_onnx.spec.recipe import ATTENTION_PARTS
from fp4dit_onnx.spec.spec import TensorSpec
from fp4dit_onnx.spec.state import Layout, QuantizedState

__all__ = ["QuantizeAttention", "part_names"]


def part_names(state: QuantizedState | Layout) -> list[str]:
    """Names of the q, k and v of the attentions in `state`, which begin those of their pairs."""
    return [f"{attention}.{part}" for attention in state.attention for part in ATTENTION_PARTS]


@dataclass(frozen=True)
class _Match:
    name: str
    operand: Operand
    spec: TensorSpec
    head_dim: int


@dataclass(frozen=True)
class QuantizeAttention:
    """q, k and v become ``Dequantize(Quantize(...))`` where attention multiplies them.

    So after norms and rotations, and where text and image are joined. The pair stands where the
    tensor is [B, S, H, D], between transposes where it is [B, H, S, D], so that each head and token
    has its own scale. An attention is found by its Softmax, whose node is named after the module.

    Raises:
        Fp4DitError: an attention in the state is not in the graph, or of another form.
    """

    state: QuantizedState | Layout
    name: str = "quantize_attention"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, self._found(graph), _rewrite)

    def _found(self, graph: gs.Graph) -> Iterator[_Match | Skip]:
        nodes = node_names(graph)
        own: dict[str, list[gs.Node]] = {}
        for node in graph.nodes:
            if node.op == "Softmax":
                own.setdefault(node.name.rpartition("/")[0], []).append(node)
        for attention, fmt in self.state.attention.items():
            names = [f"{attention}.{part}" for part in ATTENTION_PARTS]
            done = [name for name in names if f"{name}/Quantize" in nodes]
            yield from (Skip(name, "already quantized") for name in done)
            if done:
                continue
            if attention not in own:
                raise Fp4DitError(
                    f"attention {attention} of the state is not in the graph: found no Softmax of "
                    "that module"
                )
            for softmax in own[attention]:
                form = attention_of(graph, softmax)
                if form is None:
                    raise Fp4DitError(
                        f"attention {attention}: {softmax.name} is not between two products, "
                        "expected Softmax(q k^T) v"
                    )
                for name, operand in zip(names, (form.q, form.k, form.v), strict=True):
                    yield _match(name, operand, TensorSpec.of_activations(fmt))


def _match(name: str, operand: Operand, spec: TensorSpec) -> _Match:
    shape = operand.tensor.shape
    size = shape[-1] if shape else None
    known = operand.is_tokens_first or operand.is_heads_first
    if not known or not isinstance(size, int):
        raise Fp4DitError(
            f"attention's {name}: {operand.tensor.name} of shape {shape}, read with its axes as "
            f"{operand.axes}, expected batch, heads, tokens and a known head size"
        )
    return _Match(name, operand, spec, size)


def _rewrite(graph: gs.Graph, match: _Match) -> None:
    x, reader = match.operand.tensor, match.operand.reader
    turned = match.operand.is_heads_first
    tokens = _transposed(graph, x, match.name) if turned else x
    y = insert_pair(graph, tokens, match.spec, match.name, match.head_dim)
    y = _transposed(graph, y, match.name) if turned else y
    reader.inputs = [y if t is x else t for t in reader.inputs]


def _transposed(graph: gs.Graph, x: gs.Tensor, own: str) -> gs.Variable:
    """`x` with heads and tokens exchanged, by a new node named after `own`."""
    name = unique_name(f"{own}/Transpose", node_names(graph))
    shape = [x.shape[axis] for axis in HEADS_FIRST] if x.shape else None
    y = gs.Variable(unique_name(name, tensor_names(graph)), np.float32, shape)
    graph.nodes.append(gs.Node("Transpose", name, {"perm": HEADS_FIRST}, [x], [y]))
    return y
