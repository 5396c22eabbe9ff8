"""The passes that put a quantized state into a float graph, up to the form ``qdq``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pass_bench import through

pytest.importorskip("onnx_graphsurgeon")

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.names import codes_of, part_of
from fp4dit_onnx.bundle.probe import read_state
from fp4dit_onnx.numbers.compare import within
from fp4dit_onnx.passes.fuse_linear import FuseLinear
from fp4dit_onnx.passes.insert_qdq import InsertQdq
from fp4dit_onnx.passes.name_tensors import NameTensors
from fp4dit_onnx.passes.pack_weights import PackWeights
from fp4dit_onnx.passes.pipeline import run_passes

Array = npt.NDArray[Any]
K = 20


def reasons(report: Any) -> dict[str, str]:
    return {skip.name: skip.reason for skip in report.skipped}


@pytest.mark.parametrize(
    ("activation", "op"),
    [
        ("e2m3", "FpQuantize"),
        ("int8", "FpQuantize"),
        ("e3m4", "FpQuantizeInt16"),
        ("e4m3", "FpQuantizeFloat"),
    ],
)
def test_insert_qdq_puts_a_pair_before_the_linear(bench: Any, activation: str, op: str) -> None:
    """The result is, bit for bit, the float linear of the dequantized input."""
    model, parameters = bench.one_layer()
    x = bench.normal(2, 3, K)
    expected = bench.run(model, {"x": through(x, activation)})
    step = InsertQdq(bench.state_of(parameters, fc=f"e2m1/{activation}"))
    result, report = bench.rewrite(model, step, {"x": x}, expected=expected)
    quantize, dequantize = (node for node in result.graph.node if node.domain == ops.DOMAIN)
    assert (quantize.op_type, quantize.name) == (op, "fc.input/Quantize")
    assert (dequantize.op_type, dequantize.name) == (ops.DEQUANTIZE, "fc.input/Dequantize")
    assert list(quantize.output) == ["fc.input.q", "fc.input.scale"]
    assert {f.name for f in result.functions} == {op, ops.DEQUANTIZE}
    assert (report.rewritten, report.skipped) == (1, ())


def qkv(bench: Any) -> str:
    return f"""g (float[B, {K}] x, float[B, {K}] context) => (float[B, 12] y) {{
    {bench.linear("q", "x", "a")} {bench.linear("k", "x", "b")} {bench.linear("v", "x", "c")}
    {bench.linear("wide", "x", "d")} {bench.linear("cross", "context", "e")}
    y = Sum (a, b, c, d, e)
}}"""


def test_insert_qdq_shares_a_pair_between_q_k_and_v(bench: Any) -> None:
    """Not with a layer of another format, nor with one that reads another tensor."""
    parameters = bench.layer_parameters("q", "k", "v", "wide", "cross")
    formats = dict.fromkeys(("q", "k", "v", "cross"), "e2m1/e2m3")
    state = bench.state_of(parameters, wide="e2m1/e3m4", **formats)
    feed = {"x": bench.normal(3, K), "context": bench.normal(2 + 1, K) * 3}
    text = qkv(bench)
    model = bench.parse(text, parameters)
    narrow = {name: through(value, "e2m3") for name, value in feed.items()}
    separate = bench.parse(
        text.replace("MatMul (x, d_columns)", "MatMul (wide, d_columns)").replace(
            "float[B, 20] x,", "float[B, 20] x, float[B, 20] wide,"
        ),
        parameters,
    )
    expected = bench.run(separate, {**narrow, "wide": through(feed["x"], "e3m4")})
    result, report = bench.rewrite(model, InsertQdq(state), feed, expected=expected)
    quantizers = [n for n in result.graph.node if n.op_type in ops.QUANTIZE_OPS]
    assert sorted(node.name for node in quantizers) == [
        "cross.input/Quantize",
        "q.input/Quantize",
        "wide.input/Quantize",
    ]
    readers = [n.name for n in result.graph.node if "q.input.value" in n.input]
    assert sorted(readers) == ["k/MatMul", "q/MatMul", "v/MatMul"]
    assert report.rewritten == 5


def test_insert_qdq_skips_say_why(bench: Any) -> None:
    parameters = bench.layer_parameters("done", "free", "absent")
    text = f"""g (float[B, {K}] x) => (float[B, 12] y) {{
        {bench.linear("done", "x", "a")} {bench.linear("free", "x", "b")}
        {bench.linear("absent", "x", "c")}
        y = Sum (a, b, c)
    }}"""
    state = bench.state_of(parameters, done="e2m1/e2m3", free="e2m1")
    model, (first,) = run_passes(bench.parse(text, parameters), [InsertQdq(state)])
    _, (second,) = run_passes(model, [InsertQdq(state)])
    kept = {"free": "its activations stay in float", "absent": "not in the quantized state"}
    assert (first.rewritten, reasons(first)) == (1, kept)
    assert (second.rewritten, reasons(second)) == (0, {"done": "already quantized", **kept})


@pytest.mark.parametrize("weight_format", ["e2m1", "e1m2", "e3m0", "e2m3", "int8"])
@pytest.mark.parametrize("n", [1, 12])
def test_pack_weights_computes_the_same_weight(bench: Any, weight_format: str, n: int) -> None:
    """Bit for bit what the float graph gives with the state's dequantized weight."""
    parameters = bench.layer_parameters("fc", n=n)
    state = bench.state_of(parameters, fc=weight_format)
    text = f"g (float[B, {K}] x) => (float[B, {n}] y) {{ {bench.linear('fc', 'x', 'y')} }}"
    dequantized = {**parameters, "fc.weight": state.layers["fc"].weight()}
    feed = {"x": bench.normal(3, K)}
    expected = bench.run(bench.parse(text, dequantized), feed)
    model = bench.parse(text, parameters)
    result, report = bench.rewrite(model, PackWeights(state), feed, expected=expected)
    assert {t.name for t in result.graph.initializer} == {
        "fc.weight.codes",
        "fc.weight.scale",
        "fc.bias",
    }
    assert bench.tensor(result, codes_of("fc")).dtype == np.uint8
    assert bench.tensor(result, part_of("fc", "scale")).dtype == np.float16
    assert (report.rewritten, report.skipped) == (1, ())


def test_pack_weights_skips_say_why(bench: Any) -> None:
    parameters = bench.layer_parameters("fc", "absent")
    text = f"""g (float[B, {K}] x) => (float[B, 12] y) {{
        {bench.linear("fc", "x", "a")} {bench.linear("absent", "x", "b")}
        y = Add (a, b)
    }}"""
    other = bench.layer_parameters("fc", k=K + 8)
    model = bench.parse(text, parameters)
    _, report = bench.rewrite(
        model, PackWeights(bench.state_of(other, fc="e2m1")), {"x": bench.normal(3, K)}
    )
    assert reasons(report) == {
        "fc": "weight (12, 20), state (12, 28)",
        "absent": "not in the quantized state",
    }


def test_a_weight_that_others_read_stays(bench: Any) -> None:
    """Itself, transposed, or as a graph output: a float copy would stay in the file."""
    parameters = bench.layer_parameters("fc", "gc", "hc")
    text = f"""g (float[B, {K}] x) =>
        (float[B, 12] y, float[12, {K}] v, float[{K}, 12] w, float[{K}, 12] c_columns) {{
        {bench.linear("fc", "x", "a")} {bench.linear("gc", "x", "b")} {bench.linear("hc", "x", "c")}
        y = Sum (a, b, c)
        v = Neg ("fc.weight")
        w = Exp (b_columns)
    }}"""
    state = bench.state_of(parameters, fc="e2m1", gc="e2m1", hc="e2m1")
    model = bench.parse(text, parameters)
    _, report = bench.rewrite(model, PackWeights(state), {"x": bench.normal(3, K)})
    assert report.rewritten == 0
    assert reasons(report) == {
        "fc": "its weight is read by Neg too: a float copy would stay",
        "gc": "its weight is read by Exp too: a float copy would stay",
        "hc": "its weight is a graph output: a float copy would stay",
    }


TWICE = ("two transposes", "one transpose", "one transpose, no bias")


def called_twice(bench: Any) -> dict[str, str]:
    """Graphs of `TWICE`: layer a called twice, and a layer a_2."""
    return {
        "two transposes": f"""g (float[B, {K}] x, float[B, {K}] z) => (float[B, 12] y) {{
            {bench.linear("a", "x", "first")}
            ["a/Transpose_2"] second_columns = Transpose <perm = [1, 0]> ("a.weight")
            ["a/MatMul_2"] second_product = MatMul (z, second_columns)
            ["a/Add_2"] second = Add (second_product, "a.bias")
            {bench.linear("a_2", "x", "third")}
            y = Sum (first, second, third)
        }}""",
        "one transpose": f"""g (float[B, {K}] x, float[B, {K}] z) => (float[B, 12] y) {{
            {bench.linear("a", "x", "first")}
            ["a/MatMul_2"] second_product = MatMul (z, first_columns)
            ["a/Add_2"] second = Add (second_product, "a.bias")
            {bench.linear("a_2", "x", "third")}
            y = Sum (first, second, third)
        }}""",
        "one transpose, no bias": f"""g (float[B, {K}] x, float[B, {K}] z) => (float[B, 12] y) {{
            {bench.linear("a", "x", "first", bias=False)}
            ["a/MatMul_2"] second = MatMul (z, first_columns)
            {bench.linear("a_2", "x", "third", bias=False)}
            y = Sum (first, second, third)
        }}""",
    }


@pytest.mark.parametrize("case", TWICE)
@pytest.mark.parametrize("formats", ["e2m1/e2m3", "e2m1"])
def test_a_linear_called_twice(bench: Any, case: str, formats: str) -> None:
    """One packed weight for both uses, and a layer of the second one's name keeps its own."""
    text = called_twice(bench)[case]
    parameters = bench.layer_parameters("a", "a_2")
    state = bench.state_of(parameters, a=formats, a_2=formats)
    feed = {"x": bench.normal(3, K), "z": bench.normal(3, K) * 2}
    weights = {f"{name}.weight": layer.weight() for name, layer in state.layers.items()}
    rounded = bench.parse(text, {**parameters, **weights})
    inputs = {n: through(v, "e2m3") for n, v in feed.items()} if "/" in formats else feed
    expected = bench.run(rounded, inputs)
    qdq, reports = run_passes(
        bench.parse(text, parameters), [InsertQdq(state), PackWeights(state)]
    )
    assert [r.rewritten for r in reports] == [3 if "/" in formats else 0, 2]
    assert sorted(t for t in (i.name for i in qdq.graph.initializer) if "weight" in t) == [
        "a.weight.codes",
        "a.weight.scale",
        "a_2.weight.codes",
        "a_2.weight.scale",
    ]
    assert within(bench.run(qdq, feed)["y"], expected["y"], 0.0).ok
    # Three products of K terms and their sum; every sum stays below 3 K max|x| max|w|.
    largest = max(np.abs(v).max() for v in feed.values()) * max(
        np.abs(w).max() for w in weights.values()
    )
    bound = 3 * (K + 6) * 3 * K * largest * 2.0**-24
    fused, report = bench.rewrite(qdq, FuseLinear(), feed, expected=expected, bound=bound)
    linears = [node.name for node in fused.graph.node if node.op_type == ops.LINEAR]
    assert sorted(linears) == ["a", "a_2", "a_3"]
    assert report.rewritten == 3
    found = read_state(fused).layers
    assert found.keys() == {"a", "a_2"}, "two uses of one layer"
    for name, layer in state.layers.items():
        assert np.array_equal(found[name].codes, layer.codes)
    final, _ = run_passes(fused, [NameTensors(frozenset(parameters), frozenset(state.layers))])
    assert sorted(n.name for n in final.graph.node if n.op_type == ops.LINEAR) == sorted(linears)
