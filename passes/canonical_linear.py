"""Write every linear in one form: MatMul(x, Transpose(weight)) + bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip, rewrite_all
from fp4dit_onnx.passes.match import node_names, tensor_names, unique_name

__all__ = ["CanonicalLinear"]


@dataclass(frozen=True)
class CanonicalLinear:
    """``Gemm(x, weight, bias)`` with transB and unit factors becomes Transpose, MatMul and Add."""

    name: str = "canonical_linear"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        return rewrite_all(graph, self.name, _found(graph), _rewrite)


def _found(graph: gs.Graph) -> Iterator[gs.Node | Skip]:
    for node in graph.nodes:
        if node.op != "Gemm":
            continue
        if _factors(node) == (1.0, 1.0, 0, 1):
            yield node
        else:
            yield Skip(node.name, f"alpha, beta, transA, transB = {_factors(node)}")


def _factors(node: gs.Node) -> tuple[float, float, int, int]:
    get = node.attrs.get
    return get("alpha", 1.0), get("beta", 1.0), get("transA", 0), get("transB", 0)


def _rewrite(graph: gs.Graph, gemm: gs.Node) -> None:
    x, weight, *bias = (t for t in gemm.inputs if not t.is_empty())
    base, result = gemm.name.rpartition("/")[0] or gemm.name or gemm.op, gemm.outputs[0]
    nodes, tensors = node_names(graph), tensor_names(graph)
    shape = None if weight.shape is None else list(weight.shape)[::-1]
    columns = gs.Variable(unique_name(f"{base}/columns", tensors), weight.dtype, shape)
    product = result
    if bias:
        product = gs.Variable(unique_name(f"{base}/product", tensors), result.dtype, result.shape)
    gemm.outputs.clear()

    def add(
        op: str, attributes: dict[str, list[int]], inputs: list[gs.Tensor], y: gs.Tensor
    ) -> None:
        name = unique_name(f"{base}/{op}", nodes)
        graph.nodes.append(gs.Node(op, name, attributes, inputs, [y]))

    add("Transpose", {"perm": [1, 0]}, [weight], columns)
    add("MatMul", {}, [x, columns], product)
    if bias:
        add("Add", {}, [product, bias[0]], result)
