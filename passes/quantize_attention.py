"""Insert online quantize-dequantize pairs on attention's q, k and v."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.insert_qdq import insert_pair
from fp4dit_onnx.passes.match import Linear, linears, node_names, only_consumer
from fp4dit_onnx.spec.recipe import ATTENTION_PARTS
from fp4dit_onnx.spec.spec import TensorSpec
from fp4dit_onnx.spec.state import Layout, QuantizedState

__all__ = ["QuantizeAttention", "part_names"]

HEADS_FIRST = [0, 2, 1, 3]  # [B, S, H, D] -> [B, H, S, D]


def part_names(state: QuantizedState | Layout) -> list[str]:
    """Names of the q, k and v of the attentions in `state`, which begin those of their pairs."""
    return [f"{attention}.{part}" for attention in state.attention for part in ATTENTION_PARTS]


@dataclass(frozen=True)
class _Match:
    name: str
    x: gs.Tensor
    transpose: gs.Node
    spec: TensorSpec
    head_dim: int


@dataclass(frozen=True)
class QuantizeAttention:
    """``Transpose(Reshape(to_q(x)))`` becomes ``Transpose(Dequantize(Quantize(Reshape(to_q(x)))))``.

    So for `to_k` and `to_v` of every attention in the state. The pair stands where the tensor is
    [B, S, H, D], so that each head and token has its own scale. The linears are found by their
    float weights: the pass comes before the one that packs them.

    Raises:
        Fp4DitError: an attention in the state is not in the graph, or its linears are not followed
            by Reshape and Transpose.
    """

    state: QuantizedState | Layout
    name: str = "quantize_attention"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, self._found(graph), _rewrite)

    def _found(self, graph: gs.Graph) -> Iterator[_Match | Skip]:
        nodes = node_names(graph)
        uses: dict[str, list[Linear]] = {}
        for linear in linears(graph):
            uses.setdefault(linear.layer, []).append(linear)
        for attention, fmt in self.state.attention.items():
            for part in ATTENTION_PARTS:
                name, layer = f"{attention}.{part}", f"{attention}.to_{part}"
                if f"{name}/Quantize" in nodes:
                    yield Skip(name, "already quantized")
                    continue
                if layer not in uses:
                    raise Fp4DitError(
                        f"attention {attention} of the state is not in the graph: found no linear "
                        f"{layer} with a float weight"
                    )
                for linear in uses[layer]:
                    yield _match(graph, linear, name, TensorSpec.of_activations(fmt))


def _match(graph: gs.Graph, linear: Linear, name: str, spec: TensorSpec) -> _Match:
    y = linear.matmul.outputs[0]
    add = only_consumer(graph, y, "Add")
    if add and any(isinstance(t, gs.Constant) for t in add.inputs):  # the bias
        y = add.outputs[0]
    reshape = only_consumer(graph, y, "Reshape")
    transpose = only_consumer(graph, reshape.outputs[0], "Transpose") if reshape else None
    if reshape is None or transpose is None or transpose.attrs.get("perm") != HEADS_FIRST:
        raise Fp4DitError(
            f"attention's {name}: after {linear.matmul.name} found no Reshape to heads and "
            f"Transpose {HEADS_FIRST} that read it alone"
        )
    x = reshape.outputs[0]
    size = x.shape[-1] if x.shape else None
    if not isinstance(size, int):
        raise Fp4DitError(f"attention's {name}: shape {x.shape}, expected a known head size")
    return _Match(name, x, transpose, spec, size)


def _rewrite(graph: gs.Graph, match: _Match) -> None:
    match.transpose.inputs[0] = insert_pair(graph, match.x, match.spec, match.name, match.head_dim)
