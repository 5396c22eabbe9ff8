"""The pass that makes FpLinear of a quantized linear, and the two forms of a quantized graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("onnx_graphsurgeon")

from fp4dit_onnx import ops
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import linear_rounding_bound, within
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.passes.base import Skip
from fp4dit_onnx.passes.fuse_linear import ONE, FuseLinear
from fp4dit_onnx.passes.insert_qdq import InsertQdq
from fp4dit_onnx.passes.pack_weights import PackWeights
from fp4dit_onnx.passes.pipeline import quantize_passes, run_passes
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState

Array = npt.NDArray[Any]
K = 20
GROUP = 8
"""Not a divisor of K: the last group is short."""


def names_of(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


def _quantized_linear(
    bench: Any, formats: str, bias: bool = True
) -> tuple[onnx.ModelProto, QuantizedLayer, Array]:
    """One linear in the form ``qdq``, its layer, and its bias."""
    model, parameters = bench.one_layer(bias)
    state = bench.state_of(parameters, fc=formats)
    model, _ = run_passes(model, [InsertQdq(state), PackWeights(state)])
    zeros = np.zeros(12, np.float32)
    return model, state.layers["fc"], parameters["fc.bias"] if bias else zeros


def _operands(layer: QuantizedLayer, x: Array) -> tuple[Array, Array]:
    fmt = layer.spec.activation_format
    return (x, np.ones(1, np.float32)) if fmt is None else numerics.quantize(x, fmt)


@pytest.mark.parametrize("formats", ["e2m1/e2m3", "e3m0/e3m4", "int8/int8", "e2m1", "e2m3"])
@pytest.mark.parametrize("bias", [True, False])
def test_fuse_linear(bench: Any, formats: str, bias: bool) -> None:
    """One FpLinear of the same value, up to the order of rounding, and that of the reference."""
    model, layer, b = _quantized_linear(bench, formats, bias)
    x = bench.normal(4, 1, K)
    q, scale = (a.reshape(-1, a.shape[-1]) for a in _operands(layer, x))
    # Before, activations are scaled before the product, after it the product is: K + 3 roundings a
    # path each way, which the bound for K groups covers.
    bound = linear_rounding_bound(q, scale, layer.weight(), b, groups=K).reshape(4, 1, 12)
    result, report = bench.rewrite(model, FuseLinear(), {"x": x}, bound=bound)
    node = result.graph.node[-1]
    assert (node.op_type, node.name) == (ops.LINEAR, "fc")
    bias_name = "fc.bias" if bias else "fc.zero_bias"
    assert list(node.input[2:]) == ["fc.weight.codes", "fc.weight.scale", bias_name]
    assert list(node.output) == ["y"]
    weight_only = layer.spec.input is None
    first = ["x", ONE] if weight_only else ["fc.input.q", "fc.input.scale"]
    assert list(node.input[:2]) == first
    assert len(result.graph.node) == (1 if weight_only else 2)
    assert np.array_equal(bench.tensor(result, bias_name), b)
    assert (report.rewritten, report.skipped) == (1, ())
    reference = numerics.linear(q, scale, layer.integers(), layer.scale, b, GROUP)
    bound = linear_rounding_bound(q, scale, layer.weight(), b, groups=layer.scale.shape[1])
    found = bench.run(result, {"x": x})["y"].reshape(4, 12)
    assert within(found, reference, bound).ok
    assert not within(-found, reference, bound).ok


_TWO_READERS = f"""g (float[B, {K}] x) => (float[B, 12] y, float[B, 12] z) {{
    columns = Transpose <perm = [1, 0]> ("fc.weight")
    product = MatMul (x, columns)
    [add] y = Add (product, other)
    [neg] z = Neg (product)
}}"""
_NO_BIAS = f"""g (float[B, {K}] x) => (float[B, 12] y) {{
    columns = Transpose <perm = [1, 0]> ("fc.weight")
    product = MatMul (x, columns)
    [add] y = Add (%s)
}}"""


_PRODUCT_IS_OUTPUT = f"""g (float[B, {K}] x) => (float[B, 12] y, float[B, 12] product) {{
    columns = Transpose <perm = [1, 0]> ("fc.weight")
    product = MatMul (x, columns)
    [add] y = Add (product, other)
}}"""


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (_TWO_READERS, (12,)),
        (_TWO_READERS.replace("other", '"fc.bias"'), (12,)),
        (_PRODUCT_IS_OUTPUT, (12,)),
        (_NO_BIAS % "product, other", (1,)),
        (_NO_BIAS % "other, product", (1, 12)),
        (_NO_BIAS % "product, product", (12,)),
    ],
)
def test_fuse_leaves_an_add_that_is_no_bias(bench: Any, text: str, shape: tuple[int, ...]) -> None:
    """The product has another reader, or what is added is not a vector of N: the bias is zeros."""
    weight = bench.layer_parameters("fc")["fc.weight"]
    state = bench.state_of({"fc.weight": weight}, fc="e2m1/e2m3")
    other = "fc.bias" if "fc.bias" in text else "other"
    model = bench.parse(text, {"fc.weight": weight, other: bench.normal(*shape)})
    model, _ = run_passes(model, [InsertQdq(state), PackWeights(state)])
    x, zeros = bench.normal(3, K), np.zeros(12, np.float32)
    q, scale = _operands(state.layers["fc"], x)
    # Twice the product's own bound: the Add adds it to itself, or rounds once more.
    bound = 2 * linear_rounding_bound(q, scale, state.layers["fc"].weight(), zeros, groups=K)
    bound += 2.0**-23 * np.abs(bench.run(model, {"x": x})["y"])
    result, report = bench.rewrite(model, FuseLinear(), {"x": x}, bound=bound)
    (node,) = (n for n in result.graph.node if n.op_type == ops.LINEAR)
    assert list(node.output) == ["product"]
    assert np.array_equal(bench.tensor(result, node.input[4]), zeros)
    assert "add" in names_of(result)
    assert report.rewritten == 1


def test_fuse_takes_a_bias_on_either_side(bench: Any) -> None:
    parameters = bench.layer_parameters("fc")
    state = bench.state_of(parameters, fc="e2m1")
    text = _NO_BIAS % '"fc.bias", product'
    model, _ = run_passes(bench.parse(text, parameters), [PackWeights(state), FuseLinear()])
    (node,) = model.graph.node
    assert (node.input[4], node.output[0]) == ("fc.bias", "y")


def test_the_scale_of_weight_only_linears_has_a_name_of_its_own(bench: Any) -> None:
    parameters = bench.layer_parameters("fc")
    text = f"""g (float[B, {K}] x) => (float[B, 12] z) <float one = {{2.0}}> {{
        {bench.linear("fc", "x", "y")} z = Mul (y, one)
    }}"""
    state = bench.state_of(parameters, fc="e2m1")
    model, _ = run_passes(bench.parse(text, parameters), [PackWeights(state)])
    x, scale = bench.normal(3, K), np.ones(1, np.float32)
    bias = parameters["fc.bias"]
    bound = 2 * linear_rounding_bound(x, scale, state.layers["fc"].weight(), bias, groups=K)
    result, _ = bench.rewrite(model, FuseLinear(), {"x": x}, bound=bound)
    assert (bench.tensor(result, "one"), bench.tensor(result, "one_2")) == (2, 1)


def test_fuse_leaves_a_weight_that_is_not_transposed(bench: Any) -> None:
    """Nor one transposed in another way, which a square weight would hide."""
    parameters = bench.layer_parameters("fc", n=K)
    text = f"g (float[B, {K}] x) => (float[B, {K}] y) {{ {bench.linear('fc', 'x', 'y')} }}"
    state = bench.state_of(parameters, fc="e2m1")
    model, _ = run_passes(bench.parse(text, parameters), [PackWeights(state)])
    (transpose,) = (node for node in model.graph.node if node.op_type == "Transpose")
    transpose.attribute[0].ints[:] = [0, 1]
    _, report = bench.rewrite(model, FuseLinear(), {"x": bench.normal(3, K)})
    assert report.rewritten == 0


def test_fuse_skips_a_weight_without_codes(bench: Any) -> None:
    text = f"""<ir_version: 10, opset_import: ["": 21, "{ops.DOMAIN}": 1]>
        g (float[B, 4] x, int8[3, 4] q, float[3, 1] s) => (float[B, 3] y) {{
            w = {ops.DOMAIN}.{ops.DEQUANTIZE} <format = "int8", group_size = 4> (q, s)
            columns = Transpose <perm = [1, 0]> (w)
            [product] y = MatMul (x, columns)
        }}"""
    model = onnx.parser.parse_model(text)
    ops.attach_functions(model)
    feed = {
        "x": bench.normal(2, 4),
        "q": np.ones((3, 4), np.int8),
        "s": np.ones((3, 1), np.float32),
    }
    _, report = bench.rewrite(model, FuseLinear(), feed)
    assert report.skipped == (Skip("product", "its weight is dequantized from no packed codes"),)


def test_attention_products_are_nobodys_business(bench: Any) -> None:
    """Neither variable operands, nor a constant that is not a weight, nor a weight not transposed."""
    text = """g (float[B, 4, 6] q, float[B, 5, 6] k) =>
        (float[B, 4, 5] y, float[4, 3] z, float[4, 4] w) {
        keys = Transpose <perm = [0, 2, 1]> (k)
        [scores] y = MatMul (q, keys)
        table = Transpose <perm = [1, 0]> (constant)
        z = MatMul (square, table)
        same = Transpose <perm = [0, 1]> ("fc.weight")
        w = MatMul (square, same)
    }"""
    values = {
        "constant": bench.normal(3, 4),
        "square": bench.normal(4, 4),
        "fc.weight": bench.normal(4, 4),
    }
    state = bench.state_of(values, fc="e2m1/e2m3")
    model = bench.parse(text, values)
    feed = {"q": bench.normal(2, 4, 6), "k": bench.normal(2, 5, 6)}
    for step in (InsertQdq(state), PackWeights(state), FuseLinear()):
        result, report = bench.rewrite(model, step, feed)
        assert (report.rewritten, report.skipped) == (0, ())
        assert len(result.graph.node) == 6


def test_name_tensors_keeps_the_names_of_quantized_layers(bench: Any) -> None:
    parameters = bench.layer_parameters("m.fc")
    text = f"g (float[B, {K}] x) => (float[B, 12] y) {{ {bench.linear('m.fc', 'x', 'h')} y = Neg (h) }}"
    state = QuantizedState(
        {"m.fc": bench.quantized("m.fc", parameters["m.fc.weight"], "e2m1", "e2m3")}
    )
    model = bench.parse(text, parameters)
    for form in ("fused", "qdq"):
        *steps, name_tensors = quantize_passes(state, frozenset(parameters), form)
        prepared, _ = run_passes(model, steps)
        tensors = {t for node in prepared.graph.node for t in (*node.input, *node.output)}
        own = {t for t in tensors if t.startswith("m.fc.")}
        feed = {"x": bench.normal(3, K)}
        result, _ = bench.rewrite(prepared, name_tensors, feed)
        renamed = {t for node in result.graph.node for t in (*node.input, *node.output)}
        assert own <= renamed
        assert len(own) == {"fused": 5, "qdq": 8}[form]


QDQ_NODES = [
    "fc.input/Dequantize",
    "fc.input/Quantize",
    "fc.weight/Dequantize",
    "fc.weight/Unpack",
]
QDQ_NODES += ["fc/Add", "fc/MatMul", "fc/Transpose"]


@pytest.mark.parametrize(
    ("form", "names"), [("fused", ["fc", "fc.input/Quantize"]), ("qdq", QDQ_NODES)]
)
def test_quantize_passes_make_the_form_asked_for(bench: Any, form: str, names: list[str]) -> None:
    """The linear's result is the graph's output, and each operator's function is in the model."""
    model, parameters = bench.one_layer()
    state = bench.state_of(parameters, fc="e2m1/e2m3")
    passes = quantize_passes(state, frozenset(parameters), form)
    result, reports = run_passes(model, passes)
    assert sorted(names_of(result)) == names
    assert [output.name for output in result.graph.output] == ["y"]
    functions = {f.name for f in result.functions}
    assert {"FpQuantize", ops.UNPACK, ops.DEQUANTIZE} <= functions
    assert (ops.LINEAR in functions) == (form == "fused")
    assert {entry.domain: entry.version for entry in result.opset_import} == {
        "": ops.OPSET,
        ops.DOMAIN: ops.VERSION,
    }
    _, again = run_passes(result, passes)
    assert [report.rewritten for report in again] == [0] * len(reports)


def test_the_two_forms_agree(bench: Any) -> None:
    model, parameters = bench.one_layer()
    state = bench.state_of(parameters, fc="e2m1/e2m3")
    x = bench.normal(1, 3, K)
    q, scale = numerics.quantize(x[0], format_by_name("e2m3"))
    layer = state.layers["fc"]
    bound = linear_rounding_bound(q, scale, layer.weight(), parameters["fc.bias"], groups=K)
    outputs = []
    for form in ("fused", "qdq"):
        result, _ = run_passes(model, quantize_passes(state, frozenset(parameters), form))
        outputs.append(bench.run(result, {"x": x})["y"][0])
    comparison = within(*outputs, bound)
    assert comparison.ok, comparison.detail
