"""Storing large float tensors in float16."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("onnx_graphsurgeon")

from fp4dit_onnx.bundle.skeleton import is_placeholder, placeholder
from fp4dit_onnx.passes.pipeline import run_passes
from fp4dit_onnx.passes.store_half import SMALLEST, StoreHalf

N = 64
GRAPH = f"""g (float[B, {N}] x, int64[B] ids) => (float[B, {N}] y) {{
    rows = Gather <axis = 0> (table, ids)
    product = MatMul (x, weight)
    again = MatMul (product, weight)
    biased = Add (again, bias)
    y = Add (biased, rows)
}}"""
ALL = frozenset({"table", "weight", "bias"})


def parameters() -> dict[str, Any]:
    random = np.random.default_rng(0)
    shapes = {"table": (SMALLEST // N, N), "weight": (N, N), "bias": (N,)}
    return {name: random.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def feed(bench: Any) -> dict[str, Any]:
    return {"x": bench.normal(3, N), "ids": np.array([0, 5, SMALLEST // N - 1])}


def test_large_tensors_are_stored_in_float16_and_computed_with_in_float32(bench: Any) -> None:
    given = parameters()
    halves = {n: v.astype(np.float16) if v.size >= SMALLEST else v for n, v in given.items()}
    rounded = bench.parse(GRAPH, {n: v.astype(np.float32) for n, v in halves.items()})
    values = feed(bench)
    model, report = bench.rewrite(
        bench.parse(GRAPH, given), StoreHalf(ALL), values, expected=bench.run(rounded, values)
    )
    assert report.rewritten == 2
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, half in halves.items():
        assert stored[name].dtype == half.dtype
        np.testing.assert_array_equal(stored[name], half)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == 3, "of the rows, and of each use of the weight"
    (gather,) = (node for node in model.graph.node if node.op_type == "Gather")
    assert gather.input[0] == "table", "cast after the Gather"


def test_other_constants_stay(bench: Any) -> None:
    model, report = bench.rewrite(
        bench.parse(GRAPH, parameters()), StoreHalf(frozenset({"bias"})), feed(bench)
    )
    assert report.rewritten == 0
    assert {t.data_type for t in model.graph.initializer} == {onnx.TensorProto.FLOAT}


def test_a_placeholder_stays_one(bench: Any) -> None:
    model = bench.parse(GRAPH, parameters())
    for tensor in model.graph.initializer:
        tensor.CopyFrom(placeholder(tensor.name, tensor.dims, tensor.data_type))
    result, _ = run_passes(model, [StoreHalf(ALL)])
    found = {t.name: (is_placeholder(t), t.data_type) for t in result.graph.initializer}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert found == {"table": (True, half), "weight": (True, half), "bias": (True, single)}
