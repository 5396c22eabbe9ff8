"""Write every linear in one form: MatMul(x, Transpose(weight)) + bias."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fp4dit_onnx.passes.base import PassReport, Skip

__all__ = ["CanonicalLinear"]


@dataclass(frozen=True)
class CanonicalLinear:
    """``Gemm(x, weight, bias)`` with transB and unit factors becomes Transpose, MatMul and Add."""

    name: str = "canonical_linear"

    def __call__(self, graph: gs.Graph) -> PassReport:
        """See the class."""
        rewritten, skipped = 0, []
        for node in list(graph.nodes):
            if node.op != "Gemm":
                continue
            if _factors(node) != (1.0, 1.0, 0, 1):
                skipped.append(Skip(node.name, f"alpha, beta, transA, transB = {_factors(node)}"))
                continue
            _rewrite(graph, node)
            rewritten += 1
        graph.cleanup().toposort()
        return PassReport(self.name, rewritten, tuple(skipped))


def _factors(node: gs.Node) -> tuple[float, float, int, int]:
    get = node.attrs.get
    return get("alpha", 1.0), get("beta", 1.0), get("transA", 0), get("transB", 0)


def _rewrite(graph: gs.Graph, node: gs.Node) -> None:
    x, weight, *bias = node.inputs
    base, result = node.name.rpartition("/")[0] or node.name, node.outputs[0]
    columns = gs.Variable(f"{base}/columns", weight.dtype, list(weight.shape)[::-1])
    product = gs.Variable(f"{base}/product", result.dtype, result.shape) if bias else result
    node.outputs.clear()
    graph.nodes += [
        gs.Node("Transpose", f"{base}/Transpose", {"perm": [1, 0]}, [weight], [columns]),
        gs.Node("MatMul", f"{base}/MatMul", {}, [x, columns], [product]),
    ]
    if bias:
        graph.nodes.append(gs.Node("Add", f"{base}/Add", {}, [product, bias[0]], [result]))
