"""The canonical linear, names, and the driver that checks the graph after every pass."""

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
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.numbers.compare import linear_rounding_bound
from fp4dit_onnx.passes.base import PassReport, Skip
from fp4dit_onnx.passes.canonical_linear import CanonicalLinear
from fp4dit_onnx.passes.drop_identity import DropIdentity
from fp4dit_onnx.passes.name_tensors import NameTensors
from fp4dit_onnx.passes.pipeline import float_passes, run_passes

Array = npt.NDArray[Any]


_GEMM = 'g (float[B, 6] x) => (float[B, 4] y) { ["m.fc/Gemm"] y = Gemm <transB = 1> (%s) }'


def _gemm_bound(x: Array, weight: Array, bias: Array) -> Array:
    """Both forms round K products, K - 1 sums and the bias: fewer than two of the body's paths."""
    one = np.ones(1, np.float32)
    return linear_rounding_bound(x, one, weight, bias, groups=x.shape[1])


@pytest.mark.parametrize("bias", [True, False])
def test_gemm_becomes_transpose_matmul_add(bench: Any, bias: bool) -> None:
    parameters = {"m.fc.weight": normal(4, 6)}
    if bias:
        parameters["m.fc.bias"] = normal(4)
    text = _GEMM % ("x, " + ", ".join(f'"{name}"' for name in parameters))
    x = normal(5, 6)
    bound = _gemm_bound(x, parameters["m.fc.weight"], parameters.get("m.fc.bias", np.zeros(4)))
    model = bench.parse(text, parameters)
    result, report = bench.rewrite(model, CanonicalLinear(), {"x": x}, bound=bound)
    names = ["m.fc/Transpose", "m.fc/MatMul", "m.fc/Add"]
    assert [node.name for node in result.graph.node] == names[: 3 if bias else 2]
    assert set(constants(result)) == set(parameters)
    assert (report.rewritten, report.skipped) == (1, ())


def test_gemms_of_two_layers(bench: Any) -> None:
    text = """g (float[B, 4] x) => (float[B, 4] y) {
        ["a/Gemm"] h = Gemm <transB = 1> (x, "a.weight")
        ["b/Gemm"] y = Gemm <transB = 1> (h, "b.weight")
    }"""
    parameters = {"a.weight": np.eye(4, dtype=np.float32), "b.weight": np.eye(4, dtype=np.float32)}
    _, report = bench.rewrite(
        bench.parse(text, parameters), CanonicalLinear(), {"x": normal(3, 4)}
    )
    assert report.rewritten == 2


@pytest.mark.parametrize(
    "names",
    [("m/Gemm", "m/Gemm_2"), ("", ""), ("m/Gemm", "m/MatMul")],
    ids=["one module", "unnamed", "a name that is taken"],
)
def test_gemms_without_a_name_of_their_own(bench: Any, names: tuple[str, str]) -> None:
    first, second = (f'["{name}"]' if name else "" for name in names)
    text = f"""g (float[B, 4] x) => (float[B, 5] y) {{
        {first} h = Gemm <transB = 1> (x, "a.weight", "a.bias")
        {second} k = Gemm <transB = 1> (h, "b.weight", "b.bias")
        ["m/columns"] n = Neg (k)
        y = Neg (n)
    }}"""
    parameters = {"a.weight": np.eye(6, 4), "b.weight": np.eye(5, 6)}
    parameters |= {"a.bias": np.arange(6), "b.bias": np.arange(5)}
    model = bench.parse(text, {name: v.astype(np.float32) for name, v in parameters.items()})
    feed = {"x": np.arange(12, dtype=np.float32).reshape(3, 4)}  # integers: nothing is rounded
    result, report = bench.rewrite(model, CanonicalLinear(), feed)
    named = [node.name for node in result.graph.node if node.name]
    assert len(named) == len(set(named)) >= 6
    assert report.rewritten == 2


def test_gemm_with_its_bias_left_out(bench: Any) -> None:
    text = 'g (float[B, 4] x) => (float[B, 4] y) { y = Gemm <transB = 1> (x, "a.weight", "") }'
    model = bench.parse(text, {"a.weight": np.eye(4, dtype=np.float32)})
    result, _ = bench.rewrite(model, CanonicalLinear(), {"x": normal(3, 4)})
    assert op_types(result) == ["Transpose", "MatMul"]


def test_gemm_with_a_weight_of_unknown_shape(bench: Any) -> None:
    text = """g (float[2, 4] x, float[12] w, int64[2] t) => (float[2, 3] y) {
        weight = Reshape (w, t)
        y = Gemm <transB = 1> (x, weight)
    }"""
    model = bench.parse(text)
    del model.graph.value_info[:]
    feed = {"x": np.ones((2, 4), np.float32), "w": np.ones(12, np.float32), "t": np.array([3, 4])}
    _, report = bench.rewrite(model, CanonicalLinear(), feed)
    assert report.rewritten == 1


@pytest.mark.parametrize(
    ("attributes", "shape", "found"),
    [
        ("", (6, 4), "(1.0, 1.0, 0, 0)"),
        ("transB = 1, alpha = 2.0", (4, 6), "(2.0, 1.0, 0, 1)"),
        ("transB = 1, beta = 0.5", (4, 6), "(1.0, 0.5, 0, 1)"),
        ("transB = 1, transA = 1", (4, 5), "(1.0, 1.0, 1, 1)"),
    ],
)
def test_other_gemms_stay(bench: Any, attributes: str, shape: tuple[int, int], found: str) -> None:
    text = f"""g (float[5, 6] x) => (float[M, N] y) {{
        [gemm] y = Gemm <{attributes}> (x, w, b)
    }}""".replace("<>", "")
    model = bench.parse(text, {"w": normal(*shape), "b": normal(4)})
    result, report = bench.rewrite(model, CanonicalLinear(), {"x": normal(5, 6)})
    assert op_types(result) == ["Gemm"]
    assert report.skipped == (Skip("gemm", f"alpha, beta, transA, transB = {found}"),)


_NAMES = """g (float[4] x, float[2] twin) => (float[2] y)
    <float[2] c = {1, 2}, float[2] w = {3, 4}> {
    ["m/Split"] val_1, val_2 = Split <num_outputs = 2> (x)
    ["m/Mul"] val_3 = Mul (val_1, c)
    ["m/Mul"] val_4 = Mul (val_3, w)
    val_5 = Add (val_4, val_2)
    [twin] val_6 = Mul (val_5, c)
    ["m/Sub"] y = Sub (val_6, twin)
}"""


def test_name_tensors_calls_values_after_their_nodes(bench: Any) -> None:
    model = bench.parse(_NAMES)
    feed = {"x": normal(4), "twin": normal(2)}
    unlike = bench.parse(_NAMES.replace('["m/Mul"] val_4', '["m/Mul2"] val_4'))  # as ORT wants it
    step = NameTensors(frozenset({"w"}), frozenset())
    result, report = bench.rewrite(model, step, feed, expected=bench.run(unlike, feed))
    found = {node.name: (list(node.input), list(node.output)) for node in result.graph.node}
    assert found == {
        "m/Split": (["x"], ["m/Split", "m/Split.1"]),
        "m/Mul": (["m/Split", "m/Mul.in1"], ["m/Mul"]),
        "m/Mul_2": (["m/Mul", "w"], ["m/Mul_2"]),
        "Add": (["m/Mul_2", "m/Split.1"], ["Add"]),
        "twin_2": (["Add", "m/Mul.in1"], ["twin_2"]),
        "m/Sub": (["twin_2", "twin"], ["y"]),
    }
    assert report.rewritten == 3 + 6 + 1  # node names, tensors, the constant


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { a = Mul (x, c)  y = Neg (a) }",
        """g (float[4] x) => (float[2] y) {
            [a] val_1, val_2 = Split <num_outputs = 2> (x)
            ["a.1"] val_3 = Add (val_1, val_2)
            y = Neg (val_3)
        }""",
        """g (float[4] x) => (float[2] y) {
            ["a.1"] val_0 = Neg (x)
            [a] val_1, val_2 = Split <num_outputs = 2> (val_0)
            y = Add (val_1, val_2)
        }""",
        """g (float[2] x) => (float[2] y) <float[2] "Neg.in0" = {1, 2}, float[2] d = {3, 4}> {
            a = Sub (x, "Neg.in0")
            b = Neg (d)
            y = Add (a, b)
        }""",
    ],
    ids=["a node without a module", "the second output", "in the other order", "the wrong node"],
)
def test_names_are_unique_and_final(bench: Any, text: str) -> None:
    """`rewrite` asserts that the model is valid and that a second run renames nothing."""
    size = 2 if "float[2] x" in text else 4
    _, report = bench.rewrite(text, NameTensors(NO_PARAMETERS, frozenset()), {"x": normal(size)})
    assert report.rewritten > 0


def test_an_output_left_out_gets_no_name(bench: Any) -> None:
    text = """g (float[2, 3] x) => (float[2, 3] y) <float[3] s = {1, 2, 3}> {
        [norm] val_1, "", val_2 = LayerNormalization (x, s)
        y = Mul (val_1, val_2)
    }"""
    model, _ = bench.rewrite(text, NameTensors(NO_PARAMETERS, frozenset()), {"x": normal(2, 3)})
    assert list(model.graph.node[0].output) == ["norm", "", "norm.2"]


class BrokenPass:
    """Leaves an Add whose second input nobody makes, or an Add of unlike shapes."""

    name = "broken"

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __call__(self, graph: Any) -> PassReport:
        """See the class."""
        graph.nodes[0].inputs[1] = self.tensor
        return PassReport(self.name, 1)


_ADD = "g (float[2, 3] x) => (float[2, 3] y) <float[3] w = {1, 2, 3}> { [add] y = Add (x, w) }"


@pytest.mark.parametrize(
    "tensor",
    [gs.Variable("nowhere", np.float32, [3]), gs.Constant("wrong", np.ones(4, np.float32))],
)
def test_a_pass_that_leaves_an_invalid_model_is_named(bench: Any, tensor: Any) -> None:
    done: list[int] = []
    with pytest.raises(Fp4DitError, match="pass broken left an invalid model: ") as caught:
        run_passes(bench.parse(_ADD), [DropIdentity(), BrokenPass(tensor)], lambda: done.append(1))
    assert done == [1]
    cause = caught.value.__cause__
    assert isinstance(cause, (onnx.checker.ValidationError, onnx.shape_inference.InferenceError))


def test_run_passes_reports_each_pass_in_order(bench: Any) -> None:
    model, done = bench.parse(_ADD), list[int]()
    passes = float_passes(frozenset({"w"}))
    before = model.SerializeToString(deterministic=True)
    result, reports = run_passes(model, passes, lambda: done.append(1))
    assert model.SerializeToString(deterministic=True) == before
    assert [report.name for report in reports] == [step.name for step in passes]
    assert len(done) == len(passes) == len({step.name for step in passes})
    assert [entry.domain for entry in result.opset_import] == [""]
    assert (result.ir_version, result.opset_import[0].version) == (ops.IR_VERSION, ops.OPSET)
    assert not result.functions


def test_run_passes_leaves_the_model_given_alone(bench: Any) -> None:
    """A graph shares its constants with the model that it was imported from."""
    model = bench.parse(_ADD)
    before = model.SerializeToString(deterministic=True)
    result, _ = run_passes(model, [NameTensors(NO_PARAMETERS, frozenset())])
    assert list(constants(result)) == ["add.in1"]
    assert model.SerializeToString(deterministic=True) == before


class DoublingPass:
    """Doubles the graph's constant: wrong, or harmless if the constant is 0, but never done."""

    name = "doubling"

    def __call__(self, graph: Any) -> PassReport:
        """See the class."""
        weight = graph.nodes[0].inputs[1]
        weight.values = weight.values * 2
        return PassReport(self.name, 1)


@pytest.mark.parametrize(
    ("factor", "message"), [(1.0, "y: 6 of 6 differ"), (0.0, "the second run rewrites too")]
)
def test_the_bench_catches_wrong_values_and_endless_rewriting(
    bench: Any, factor: float, message: str
) -> None:
    model = bench.parse(
        "g (float[2, 3] x) => (float[2, 3] y) { y = Add (x, w) }",
        {"w": np.array([1, 2, 3], np.float32) * np.float32(factor)},
    )
    with pytest.raises(AssertionError, match=message):
        bench.rewrite(model, DoublingPass(), {"x": np.zeros((2, 3), np.float32)})
