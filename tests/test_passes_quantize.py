"""The passes that put a quantized state into a float graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("onnx_graphsurgeon")

from fp4dit_onnx import numerics, ops
from fp4dit_onnx.compare import linear_rounding_bound, within
from fp4dit_onnx.formats import format_by_name
from fp4dit_onnx.passes.base import Skip
from fp4dit_onnx.passes.fuse_linear import ONE, FuseLinear
from fp4dit_onnx.passes.insert_qdq import InsertQdq
from fp4dit_onnx.passes.name_tensors import NameTensors
from fp4dit_onnx.passes.pack_weights import PackWeights, codes_name, scale_name
from fp4dit_onnx.passes.pipeline import quantize_passes, run_passes
from fp4dit_onnx.probe import read_state
from fp4dit_onnx.recipe import LayerSpec
from fp4dit_onnx.state import QuantizedLayer, QuantizedState

Array = npt.NDArray[Any]
K = 20
GROUP = 8
"""Not a divisor of K: the last group is short."""


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def quantized(
    name: str, weight: Array, weight_format: str, activation: str | None
) -> QuantizedLayer:
    """`weight` rounded to nearest under absmax scales in float16."""
    spec = LayerSpec(weight_format, activation, GROUP)
    fmt = spec.weight_format
    starts = np.arange(0, weight.shape[1], GROUP)
    amax = np.maximum.reduceat(np.abs(weight), starts, axis=1)
    scale = (amax / np.float32(fmt.max_integer)).astype(np.float16)
    codes = numerics.quantize_groups(weight, scale.astype(np.float32), fmt, GROUP)
    packed = numerics.pack(codes, fmt.storage_bits)
    return QuantizedLayer(name, spec, weight.shape[1], packed, scale)


def state_of(parameters: Mapping[str, Array], **formats: str) -> QuantizedState:
    """A state of the layers named, each with formats written ``weight/activation``."""
    layers = {}
    for name, spec in formats.items():
        weight, _, activation = spec.partition("/")
        layers[name] = quantized(name, parameters[f"{name}.weight"], weight, activation or None)
    return QuantizedState(layers)


def linear(layer: str, x: str, y: str, bias: bool = True) -> str:
    """Text of a canonical linear."""
    product = f"{y}_product" if bias else y
    add = f'["{layer}/Add"] {y} = Add ({product}, "{layer}.bias")' if bias else ""
    return f"""["{layer}/Transpose"] {y}_columns = Transpose <perm = [1, 0]> ("{layer}.weight")
        ["{layer}/MatMul"] {product} = MatMul ({x}, {y}_columns) {add}
    """


def layer_parameters(*layers: str, n: int = 12, k: int = K) -> dict[str, Array]:
    values = np.random.default_rng(n * k)
    parameters = {}
    for layer in layers:
        parameters[f"{layer}.weight"] = values.standard_normal((n, k)).astype(np.float32)
        parameters[f"{layer}.bias"] = values.standard_normal(n).astype(np.float32)
    return parameters


def one_layer(bench: Any, bias: bool = True) -> tuple[onnx.ModelProto, dict[str, Array]]:
    parameters = layer_parameters("fc")
    text = f"g (float[B, S, {K}] x) => (float[B, S, 12] y) {{ {linear('fc', 'x', 'y', bias)} }}"
    return bench.parse(text, parameters), parameters


def through(x: Array, name: str) -> Array:
    """`x` after quantize and dequantize in format `name`."""
    q, scale = numerics.quantize(x, format_by_name(name))
    return numerics.dequantize(q, scale, x.shape[-1])


def names_of(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


def tensor(model: onnx.ModelProto, name: str) -> Array:
    (found,) = (t for t in model.graph.initializer if t.name == name)
    return onnx.numpy_helper.to_array(found)


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
    model, parameters = one_layer(bench)
    x = normal(2, 3, K)
    expected = bench.run(model, {"x": through(x, activation)})
    step = InsertQdq(state_of(parameters, fc=f"e2m1/{activation}"))
    result, report = bench.rewrite(model, step, {"x": x}, expected=expected)
    quantize, dequantize = (node for node in result.graph.node if node.domain == ops.DOMAIN)
    assert (quantize.op_type, quantize.name) == (op, "fc.input/Quantize")
    assert (dequantize.op_type, dequantize.name) == (ops.DEQUANTIZE, "fc.input/Dequantize")
    assert list(quantize.output) == ["fc.input.q", "fc.input.scale"]
    assert {f.name for f in result.functions} == {op, ops.DEQUANTIZE}
    assert (report.rewritten, report.skipped) == (1, ())


_QKV = f"""g (float[B, {K}] x, float[B, {K}] context) => (float[B, 12] y) {{
    {linear("q", "x", "a")} {linear("k", "x", "b")} {linear("v", "x", "c")}
    {linear("wide", "x", "d")} {linear("cross", "context", "e")}
    y = Sum (a, b, c, d, e)
}}"""


def test_insert_qdq_shares_a_pair_between_q_k_and_v(bench: Any) -> None:
    """Not with a layer of another format, nor with one that reads another tensor."""
    parameters = layer_parameters("q", "k", "v", "wide", "cross")
    formats = dict.fromkeys(("q", "k", "v", "cross"), "e2m1/e2m3")
    state = state_of(parameters, wide="e2m1/e3m4", **formats)
    feed = {"x": normal(3, K), "context": normal(2 + 1, K) * 3}
    model = bench.parse(_QKV, parameters)
    narrow = {name: through(value, "e2m3") for name, value in feed.items()}
    separate = bench.parse(
        _QKV.replace("MatMul (x, d_columns)", "MatMul (wide, d_columns)").replace(
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
    parameters = layer_parameters("done", "free", "absent")
    text = f"""g (float[B, {K}] x) => (float[B, 12] y) {{
        {linear("done", "x", "a")} {linear("free", "x", "b")} {linear("absent", "x", "c")}
        y = Sum (a, b, c)
    }}"""
    state = state_of(parameters, done="e2m1/e2m3", free="e2m1")
    model, (first,) = run_passes(bench.parse(text, parameters), [InsertQdq(state)])
    _, (second,) = run_passes(model, [InsertQdq(state)])
    kept = {"free": "its activations stay in float", "absent": "not in the quantized state"}
    assert (first.rewritten, reasons(first)) == (1, kept)
    assert (second.rewritten, reasons(second)) == (0, {"done": "already quantized", **kept})


@pytest.mark.parametrize("weight_format", ["e2m1", "e1m2", "e3m0", "e2m3", "int8"])
@pytest.mark.parametrize("n", [1, 12])
def test_pack_weights_computes_the_same_weight(bench: Any, weight_format: str, n: int) -> None:
    """Bit for bit what the float graph gives with the state's dequantized weight."""
    parameters = layer_parameters("fc", n=n)
    state = state_of(parameters, fc=weight_format)
    text = f"g (float[B, {K}] x) => (float[B, {n}] y) {{ {linear('fc', 'x', 'y')} }}"
    dequantized = {**parameters, "fc.weight": state.layers["fc"].weight()}
    feed = {"x": normal(3, K)}
    expected = bench.run(bench.parse(text, dequantized), feed)
    model = bench.parse(text, parameters)
    result, report = bench.rewrite(model, PackWeights(state), feed, expected=expected)
    assert {t.name for t in result.graph.initializer} == {
        "fc.weight.codes",
        "fc.weight.scale",
        "fc.bias",
    }
    assert tensor(result, codes_name("fc")).dtype == np.uint8
    assert tensor(result, scale_name("fc")).dtype == np.float16
    assert (report.rewritten, report.skipped) == (1, ())


def test_pack_weights_skips_say_why(bench: Any) -> None:
    parameters = layer_parameters("fc", "absent")
    text = f"""g (float[B, {K}] x) => (float[B, 12] y) {{
        {linear("fc", "x", "a")} {linear("absent", "x", "b")}
        y = Add (a, b)
    }}"""
    other = layer_parameters("fc", k=K + 8)
    model = bench.parse(text, parameters)
    _, report = bench.rewrite(model, PackWeights(state_of(other, fc="e2m1")), {"x": normal(3, K)})
    assert reasons(report) == {
        "fc": "weight (12, 20), state (12, 28)",
        "absent": "not in the quantized state",
    }


def test_a_weight_that_others_read_stays(bench: Any) -> None:
    """Itself, transposed, or as a graph output: a float copy would stay in the file."""
    parameters = layer_parameters("fc", "gc", "hc")
    text = f"""g (float[B, {K}] x) =>
        (float[B, 12] y, float[12, {K}] v, float[{K}, 12] w, float[{K}, 12] c_columns) {{
        {linear("fc", "x", "a")} {linear("gc", "x", "b")} {linear("hc", "x", "c")}
        y = Sum (a, b, c)
        v = Neg ("fc.weight")
        w = Exp (b_columns)
    }}"""
    state = state_of(parameters, fc="e2m1", gc="e2m1", hc="e2m1")
    model = bench.parse(text, parameters)
    _, report = bench.rewrite(model, PackWeights(state), {"x": normal(3, K)})
    assert report.rewritten == 0
    assert reasons(report) == {
        "fc": "its weight is read by Neg too: a float copy would stay",
        "gc": "its weight is read by Exp too: a float copy would stay",
        "hc": "its weight is a graph output: a float copy would stay",
    }


_TWICE = {
    "two transposes": f"""g (float[B, {K}] x, float[B, {K}] z) => (float[B, 12] y) {{
        {linear("a", "x", "first")}
        ["a/Transpose_2"] second_columns = Transpose <perm = [1, 0]> ("a.weight")
        ["a/MatMul_2"] second_product = MatMul (z, second_columns)
        ["a/Add_2"] second = Add (second_product, "a.bias")
        {linear("a_2", "x", "third")}
        y = Sum (first, second, third)
    }}""",
    "one transpose": f"""g (float[B, {K}] x, float[B, {K}] z) => (float[B, 12] y) {{
        {linear("a", "x", "first")}
        ["a/MatMul_2"] second_product = MatMul (z, first_columns)
        ["a/Add_2"] second = Add (second_product, "a.bias")
        {linear("a_2", "x", "third")}
        y = Sum (first, second, third)
    }}""",
    "one transpose, no bias": f"""g (float[B, {K}] x, float[B, {K}] z) => (float[B, 12] y) {{
        {linear("a", "x", "first", bias=False)}
        ["a/MatMul_2"] second = MatMul (z, first_columns)
        {linear("a_2", "x", "third", bias=False)}
        y = Sum (first, second, third)
    }}""",
}


@pytest.mark.parametrize("text", _TWICE.values(), ids=_TWICE)
@pytest.mark.parametrize("formats", ["e2m1/e2m3", "e2m1"])
def test_a_linear_called_twice(bench: Any, text: str, formats: str) -> None:
    """One packed weight for both uses, and a layer of the second one's name keeps its own."""
    parameters = layer_parameters("a", "a_2")
    state = state_of(parameters, a=formats, a_2=formats)
    feed = {"x": normal(3, K), "z": normal(3, K) * 2}
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
    assert found.keys() == {"a", "a_2", "a_3"}
    for name, layer in state.layers.items():
        assert np.array_equal(found[name].codes, layer.codes)
    final, _ = run_passes(fused, [NameTensors(frozenset(parameters), frozenset(state.layers))])
    assert sorted(n.name for n in final.graph.node if n.op_type == ops.LINEAR) == sorted(linears)


def _quantized_linear(
    bench: Any, formats: str, bias: bool = True
) -> tuple[onnx.ModelProto, QuantizedLayer, Array]:
    """One linear in the form ``qdq``, its layer, and its bias."""
    model, parameters = one_layer(bench, bias)
    state = state_of(parameters, fc=formats)
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
    x = normal(4, 1, K)
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
    weight_only = layer.spec.activation is None
    first = ["x", ONE] if weight_only else ["fc.input.q", "fc.input.scale"]
    assert list(node.input[:2]) == first
    assert len(result.graph.node) == (1 if weight_only else 2)
    assert np.array_equal(tensor(result, bias_name), b)
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
    """The product has another reader, or what is added is no vector of N: the bias is zeros."""
    weight = layer_parameters("fc")["fc.weight"]
    state = state_of({"fc.weight": weight}, fc="e2m1/e2m3")
    other = "fc.bias" if "fc.bias" in text else "other"
    model = bench.parse(text, {"fc.weight": weight, other: normal(*shape)})
    model, _ = run_passes(model, [InsertQdq(state), PackWeights(state)])
    x, zeros = normal(3, K), np.zeros(12, np.float32)
    q, scale = _operands(state.layers["fc"], x)
    # Twice the product's own bound: the Add adds it to itself, or rounds once more.
    bound = 2 * linear_rounding_bound(q, scale, state.layers["fc"].weight(), zeros, groups=K)
    bound += 2.0**-23 * np.abs(bench.run(model, {"x": x})["y"])
    result, report = bench.rewrite(model, FuseLinear(), {"x": x}, bound=bound)
    (node,) = (n for n in result.graph.node if n.op_type == ops.LINEAR)
    assert list(node.output) == ["product"]
    assert np.array_equal(tensor(result, node.input[4]), zeros)
    assert "add" in names_of(result)
    assert report.rewritten == 1


def test_fuse_takes_a_bias_on_either_side(bench: Any) -> None:
    parameters = layer_parameters("fc")
    state = state_of(parameters, fc="e2m1")
    text = _NO_BIAS % '"fc.bias", product'
    model, _ = run_passes(bench.parse(text, parameters), [PackWeights(state), FuseLinear()])
    (node,) = model.graph.node
    assert (node.input[4], node.output[0]) == ("fc.bias", "y")


def test_the_scale_of_weight_only_linears_has_a_name_of_its_own(bench: Any) -> None:
    parameters = layer_parameters("fc")
    text = f"""g (float[B, {K}] x) => (float[B, 12] z) <float one = {{2.0}}> {{
        {linear("fc", "x", "y")} z = Mul (y, one)
    }}"""
    state = state_of(parameters, fc="e2m1")
    model, _ = run_passes(bench.parse(text, parameters), [PackWeights(state)])
    x, scale = normal(3, K), np.ones(1, np.float32)
    bias = parameters["fc.bias"]
    bound = 2 * linear_rounding_bound(x, scale, state.layers["fc"].weight(), bias, groups=K)
    result, _ = bench.rewrite(model, FuseLinear(), {"x": x}, bound=bound)
    assert (tensor(result, "one"), tensor(result, "one_2")) == (2, 1)


def test_fuse_leaves_a_weight_that_is_not_transposed(bench: Any) -> None:
    """Nor one transposed in another way, which a square weight would hide."""
    parameters = layer_parameters("fc", n=K)
    text = f"g (float[B, {K}] x) => (float[B, {K}] y) {{ {linear('fc', 'x', 'y')} }}"
    state = state_of(parameters, fc="e2m1")
    model, _ = run_passes(bench.parse(text, parameters), [PackWeights(state)])
    (transpose,) = (node for node in model.graph.node if node.op_type == "Transpose")
    transpose.attribute[0].ints[:] = [0, 1]
    _, report = bench.rewrite(model, FuseLinear(), {"x": normal(3, K)})
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
    feed = {"x": normal(2, 4), "q": np.ones((3, 4), np.int8), "s": np.ones((3, 1), np.float32)}
    _, report = bench.rewrite(model, FuseLinear(), feed)
    assert report.skipped == (Skip("product", "its weight is dequantized from no packed codes"),)


def test_attention_products_are_nobodys_business(bench: Any) -> None:
    """Neither variable operands, nor a constant that is no weight, nor a weight not transposed."""
    text = """g (float[B, 4, 6] q, float[B, 5, 6] k) =>
        (float[B, 4, 5] y, float[4, 3] z, float[4, 4] w) {
        keys = Transpose <perm = [0, 2, 1]> (k)
        [scores] y = MatMul (q, keys)
        table = Transpose <perm = [1, 0]> (constant)
        z = MatMul (square, table)
        same = Transpose <perm = [0, 1]> ("fc.weight")
        w = MatMul (square, same)
    }"""
    values = {"constant": normal(3, 4), "square": normal(4, 4), "fc.weight": normal(4, 4)}
    state = state_of(values, fc="e2m1/e2m3")
    model = bench.parse(text, values)
    feed = {"q": normal(2, 4, 6), "k": normal(2, 5, 6)}
    for step in (InsertQdq(state), PackWeights(state), FuseLinear()):
        result, report = bench.rewrite(model, step, feed)
        assert (report.rewritten, report.skipped) == (0, ())
        assert len(result.graph.node) == 6


def test_name_tensors_keeps_the_names_of_quantized_layers(bench: Any) -> None:
    parameters = layer_parameters("m.fc")
    text = f"g (float[B, {K}] x) => (float[B, 12] y) {{ {linear('m.fc', 'x', 'h')} y = Neg (h) }}"
    state = QuantizedState({"m.fc": quantized("m.fc", parameters["m.fc.weight"], "e2m1", "e2m3")})
    model = bench.parse(text, parameters)
    for form in ("fused", "qdq"):
        *steps, name_tensors = quantize_passes(state, frozenset(parameters), form)
        prepared, _ = run_passes(model, steps)
        tensors = {t for node in prepared.graph.node for t in (*node.input, *node.output)}
        own = {t for t in tensors if t.startswith("m.fc.")}
        feed = {"x": normal(3, K)}
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
    model, parameters = one_layer(bench)
    state = state_of(parameters, fc="e2m1/e2m3")
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
    model, parameters = one_layer(bench)
    state = state_of(parameters, fc="e2m1/e2m3")
    x = normal(1, 3, K)
    q, scale = numerics.quantize(x[0], format_by_name("e2m3"))
    layer = state.layers["fc"]
    bound = linear_rounding_bound(q, scale, layer.weight(), parameters["fc.bias"], groups=K)
    outputs = []
    for form in ("fused", "qdq"):
        result, _ = run_passes(model, quantize_passes(state, frozenset(parameters), form))
        outputs.append(bench.run(result, {"x": x})["y"][0])
    comparison = within(*outputs, bound)
    assert comparison.ok, comparison.detail
