"""What is folded to a constant, and what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("onnx_graphsurgeon")

import onnx_graphsurgeon as gs
from pass_bench import NO_PARAMETERS, constants, normal, op_types

from fp4dit_onnx import ops
from fp4dit_onnx.passes.fold_constants import LARGEST, FoldConstants
from fp4dit_onnx.passes.pipeline import run_passes

Array = npt.NDArray[Any]


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        ("Shape (x)", [2, 3, 5]),
        ("Shape <start = 1> (x)", [3, 5]),
        ("Shape <start = -2, end = -1> (x)", [3]),
    ],
)
def test_known_shapes_are_folded(bench: Any, shape: str, value: list[int]) -> None:
    text = f"g (float[2, 3, 5] x) => (int64[N] y) {{ s = {shape}  y = Neg (s) }}"
    model, report = bench.rewrite(text, FoldConstants(NO_PARAMETERS), {"x": normal(2, 3, 5)})
    assert constants(model) == {"y": [-v for v in value]}
    assert report.rewritten == 2


@pytest.mark.parametrize(("index", "value"), [(1, 3), ([1], [3]), ([[2, -2]], [[5, 3]])])
def test_one_known_size_of_a_dynamic_shape_is_folded(
    bench: Any, index: int | list[Any], value: int | list[Any]
) -> None:
    text = """g (float[B, 3, 5] x, int64[1] t) => (int64[N] y) {
        s = Shape (x)
        [gather] size = Gather (s, index)
        [reshape] flat = Reshape (size, minus_one)
        [add] y = Add (flat, t)
    }"""
    values = {"index": np.array(index), "minus_one": np.array([-1])}
    feed = {"x": normal(2, 3, 5), "t": np.array([7])}
    model = bench.parse(text, values)
    result, report = bench.rewrite(model, FoldConstants(NO_PARAMETERS), feed)
    assert op_types(result) == ["Add"]
    assert constants(result) == {"flat": np.array(value).reshape(-1).tolist()}
    assert report.rewritten == 2


@pytest.mark.parametrize("take", ["Gather (s, zero)", "Gather (s, i)", "Slice (s, zero, one)"])
def test_sizes_known_only_at_run_time_stay(bench: Any, take: str) -> None:
    text = f"""g (float[B, 3] x, int64[1] i) => (int64[1] y)
        <int64[1] zero = {{0}}, int64[1] one = {{1}}> {{
        s = Shape (x)
        y = {take}
    }}"""
    feed = {"x": normal(2, 3), "i": np.array([1])}
    model, report = bench.rewrite(text, FoldConstants(NO_PARAMETERS), feed)
    assert len(op_types(model)) == 2
    assert report.rewritten == 0


def test_shape_of_a_tensor_of_unknown_rank_stays(bench: Any) -> None:
    text = """g (float[6] x, int64[N] t) => (int64[N] y) {
        r = Reshape (x, t)
        y = Shape (r)
    }"""
    feed = {"x": normal(6), "t": np.array([2, 3])}
    _, report = bench.rewrite(text, FoldConstants(NO_PARAMETERS), feed)
    assert report.rewritten == 0


def test_arithmetic_on_constants_is_folded_in_one_run(bench: Any) -> None:
    """Constant nodes and initializers alike; the readers of a shared constant keep it."""
    text = """g (float[2] x) => (float[2] y) <float[2] a = {1, 2}> {
        two = Constant <value_float = 2.0> ()
        b = Mul (a, two)
        c = Add (b, a)
        d = Add (x, c)
        y = Mul (d, a)
    }"""
    model, report = bench.rewrite(text, FoldConstants(NO_PARAMETERS), {"x": normal(2)})
    assert op_types(model) == ["Add", "Mul"]
    assert constants(model) == {"a": [1, 2], "c": [3, 6]}
    assert report.rewritten == 3


@pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("int32", np.int32)])
def test_cast_like_needs_the_type_alone(bench: Any, kind: str, dtype: Any) -> None:
    text = f"""g ({kind}[B] x) => ({kind}[B] y) <float[1] a = {{2.0}}> {{
        b = CastLike (a, x)
        y = Mul (x, b)
    }}"""
    model, report = bench.rewrite(text, FoldConstants(NO_PARAMETERS), {"x": np.ones(3, dtype)})
    assert op_types(model) == ["Mul"]
    assert onnx.numpy_helper.to_array(model.graph.initializer[0]).dtype == dtype
    assert report.rewritten == 1


def test_cast_like_of_a_variable_stays(bench: Any) -> None:
    text = "g (float[2] x, float16[2] t) => (float16[2] y) { y = CastLike (x, t) }"
    feed = {"x": normal(2), "t": np.zeros(2, np.float16)}
    _, report = bench.rewrite(text, FoldConstants(NO_PARAMETERS), feed)
    assert report.rewritten == 0


def test_cast_like_to_an_unknown_type_stays() -> None:
    """A type that inference cannot know: that of an unknown operator's result."""
    a = gs.Constant("a", np.ones(1, np.float32))
    unknown, result = gs.Variable("unknown"), gs.Variable("y", np.float32, [1])
    nodes = [
        gs.Node("Mystery", "m", {}, [], [unknown], domain="other"),
        gs.Node("CastLike", "c", {}, [a, unknown], [result]),
    ]
    graph = gs.Graph(nodes, outputs=[result], opset=ops.OPSET)
    assert FoldConstants(NO_PARAMETERS)(graph).rewritten == 0
    assert [node.op for node in graph.nodes] == ["Mystery", "CastLike"]


def test_parameters_are_never_folded(bench: Any) -> None:
    text = """g (float[2, 2] x) => (float[2, 2] y) {
        w = Transpose <perm = [1, 0]> ("block.weight")
        y = MatMul (x, w)
    }"""
    model = bench.parse(text, {"block.weight": normal(2, 2)})
    step = FoldConstants(frozenset({"block.weight"}))
    result, report = bench.rewrite(model, step, {"x": normal(2, 2)})
    assert op_types(result) == ["Transpose", "MatMul"]
    assert report.rewritten == 0


def test_parameters_are_not_cast_either(bench: Any) -> None:
    text = """g (float16[2] x) => (float16[2] y) {
        w = CastLike ("block.weight", x)
        y = Mul (x, w)
    }"""
    model = bench.parse(text, {"block.weight": normal(2)})
    step = FoldConstants(frozenset({"block.weight"}))
    result, report = bench.rewrite(model, step, {"x": np.ones(2, np.float16)})
    assert op_types(result) == ["CastLike", "Mul"]
    assert report.rewritten == 0


@pytest.mark.parametrize(
    "call",
    [
        "RandomNormal <shape = [2], seed = 1.0> ()",
        "RandomUniform <shape = [2], seed = 1.0> ()",
        "RandomNormalLike <seed = 1.0> (a)",
        "Bernoulli <seed = 1.0> (a)",
    ],
)
def test_random_values_stay_random(bench: Any, call: str) -> None:
    text = f"""g (float[2] x) => (float[2] y) <float[2] a = {{0.5, 0.5}}> {{
        r = {call}
        y = Add (x, r)
    }}"""
    model, (report,) = run_passes(bench.parse(text), [FoldConstants(NO_PARAMETERS)])
    assert len(op_types(model)) == 2
    assert report.rewritten == 0


def test_sequences_of_constants_stay(bench: Any) -> None:
    """A sequence is not a tensor, empty or not."""
    text = """g (float[2] x) => (float[2] y, int64 n) <float[2] a = {1, 2}, int64 zero = {0}> {
        none = SequenceEmpty <dtype = 1> ()
        n = SequenceLength (none)
        s = SequenceConstruct (a, a)
        b = SequenceAt (s, zero)
        y = Add (x, b)
    }"""
    _, report = bench.rewrite(text, FoldConstants(NO_PARAMETERS), {"x": normal(2)})
    assert report.rewritten == 0


def test_branches_that_read_outer_values_stay(bench: Any) -> None:
    text = """g (float[2] x) => (float[2] y) <bool always = {1}> {
        a = Neg (x)
        y = If (always) <
            then_branch = t () => (float[2] b) { b = Abs (a) },
            else_branch = e () => (float[2] c) { c = Exp (a) }
        >
    }"""
    model, report = bench.rewrite(text, FoldConstants(NO_PARAMETERS), {"x": normal(2)})
    assert op_types(model) == ["Neg", "If"]
    assert report.rewritten == 0


@pytest.mark.parametrize(("size", "folded"), [(LARGEST, 1), (LARGEST + 1, 0)])
def test_large_results_and_operands_stay_computed(bench: Any, size: int, folded: int) -> None:
    text = f"g (float[1] x) => (float[{size}] y) {{ a = Expand (one, size)  y = Mul (x, a) }}"
    values = {"one": np.ones(1, np.float32), "size": np.array([size])}
    step = FoldConstants(NO_PARAMETERS)
    _, report = bench.rewrite(bench.parse(text, values), step, {"x": normal(1)})
    assert report.rewritten == folded
    model = bench.parse(
        "g (float[1] x) => (float[1] y) { a = ReduceSum (c)  y = Mul (x, a) }",
        {"c": np.ones(size, np.float32)},
    )
    _, report = bench.rewrite(model, step, {"x": normal(1)})
    assert report.rewritten == folded


def test_folding_leaves_no_trace_among_the_readers_of_a_constant() -> None:
    """Passes ask who reads a tensor; a folded node's copy must not be among them."""
    a, x = gs.Constant("a", np.ones(2, np.float32)), gs.Variable("x", np.float32, [2])
    b, result = gs.Variable("b", np.float32, [2]), gs.Variable("y", np.float32, [2])
    add = gs.Node("Sum", "s", {}, [x, a, b], [result])
    nodes = [gs.Node("Neg", "n", {}, [a], [b]), add]
    graph = gs.Graph(nodes, inputs=[x], outputs=[result], opset=ops.OPSET)
    assert FoldConstants(NO_PARAMETERS)(graph).rewritten == 1
    assert graph.nodes == [add]
    assert list(a.outputs) == [add]


def test_nodes_with_several_outputs_stay(bench: Any) -> None:
    text = """g (float[2] x) => (float[2] y) <float[4] a = {1, 2, 3, 4}> {
        b, c = Split <num_outputs = 2> (a)
        y = Sum (x, b, c)
    }"""
    _, report = bench.rewrite(text, FoldConstants(NO_PARAMETERS), {"x": normal(2)})
    assert report.rewritten == 0


def test_nodes_of_other_domains_stay() -> None:
    a, result = gs.Constant("a", np.ones(1, np.float32)), gs.Variable("y", np.float32, [1])
    node = gs.Node("Neg", "n", {}, [a], [result], domain="other")
    graph = gs.Graph([node], outputs=[result], opset=ops.OPSET)
    assert FoldConstants(NO_PARAMETERS)(graph).rewritten == 0
