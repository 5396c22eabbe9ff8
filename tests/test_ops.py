"""The operators' function bodies, in stock ONNX Runtime and in ONNX's own evaluator, against numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import pytest
from onnx import helper
from quantizer_rows import rows_near_ties

from fp4dit_onnx import ops
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import linear_rounding_bound, same_bits, within
from fp4dit_onnx.numbers.formats import FORMATS, FloatFormat

ort = pytest.importorskip("onnxruntime")

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Evaluator = Callable[[onnx.ModelProto, Feed], list[Array]]

EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
OUTPUTS = {
    **dict.fromkeys(ops.QUANTIZE_OPS, ("q", "scale")),
    **dict.fromkeys((ops.UNPACK, ops.DEQUANTIZE, ops.LINEAR), ("y",)),
}
LINEAR_INPUTS = ("q", "scale", "codes", "weight_scale", "bias")


def run_ort(model: onnx.ModelProto, feed: Feed) -> list[Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feed)))


def run_reference(model: onnx.ModelProto, feed: Feed) -> list[Array]:
    with np.errstate(
        all="ignore"
    ):  # the evaluator is numpy, and rows with NaN are part of the test
        return list(onnx.reference.ReferenceEvaluator(model).run(None, dict(feed)))


@pytest.fixture(params=[run_ort, run_reference], ids=["ort", "reference"])
def evaluate(request: pytest.FixtureRequest) -> Evaluator:
    found: Evaluator = request.param
    return found


def element(dtype: npt.DTypeLike) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def make_model(
    nodes: list[onnx.NodeProto], feed: Feed, outputs: Mapping[str, npt.DTypeLike]
) -> onnx.ModelProto:
    """A model of these nodes, with the functions that they use; outputs are typed, not shaped."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(k, element(v.dtype), v.shape) for k, v in feed.items()],
        [helper.make_tensor_value_info(k, element(t), None) for k, t in outputs.items()],
    )
    imports = [helper.make_opsetid("", ops.OPSET), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
    model = helper.make_model(graph, ir_version=ops.IR_VERSION, opset_imports=imports)
    ops.attach_functions(model)
    return model


def one_node(op: str, attributes: Mapping[str, Any], feed: Feed) -> onnx.ModelProto:
    """A model of one operator; the feed's order is the inputs'."""
    node = helper.make_node(op, list(feed), list(OUTPUTS[op]), domain=ops.DOMAIN, **attributes)
    types = dict.fromkeys(OUTPUTS[op], np.float32)
    if op in ops.QUANTIZE_OPS:
        types["q"] = ops.QUANTIZE_OPS[op]
    return make_model([node], feed, types)


def assert_same(wanted: Array, found: Array) -> None:
    same = same_bits(wanted, found)
    assert same.ok, same.detail


def hard_rows(fmt: FloatFormat) -> Array:
    """Rows [R, K]: every grid point, midpoint and neighbour (the factor is 1), special and random."""
    exact = np.concatenate([fmt.magnitudes, (fmt.magnitudes[:-1] + fmt.magnitudes[1:]) / 2])
    point = exact.astype(np.float32)
    up, down = np.nextafter(point, np.float32(np.inf)), np.nextafter(point, np.float32(0))
    row = np.concatenate([point, np.minimum(up, np.float32(fmt.max_integer)), down])
    special = np.zeros((8, row.size), np.float32)
    special[1] = 2.0**-91
    special[2, 0], special[3, 0], special[4, 0] = np.nan, np.inf, -np.inf
    special[5] = -0.0
    special[6, :2] = np.finfo(np.float32).max, -1
    special[7, :2] = 2.0**-89, -(2.0**-91)
    random = np.random.default_rng(0)
    noise = random.standard_normal((24, row.size)) * 10.0 ** random.uniform(-25, 30, (24, 1))
    return np.concatenate([row[None], -row[None], special, noise.astype(np.float32)])


def smallest_rows() -> Array:
    """Rows on both sides of the magnitude below which a row counts as zero."""
    edge = numerics.SMALLEST_AMAX
    x = np.array([[edge, 0], [np.nextafter(edge, np.float32(0)), 0]], np.float32)
    return np.concatenate([x, -x])


def layer(fmt: FloatFormat, n: int, k: int, group_size: int) -> tuple[Array, Array, Array]:
    """Packed random codes of numbers, float16 scales [n, G] and a bias [n]."""
    random = np.random.default_rng(1)
    magnitude = random.integers(0, len(fmt.magnitudes), (n, k))
    codes = magnitude + (random.integers(0, 2, (n, k)) << (fmt.bits - 1))
    scale = random.uniform(0.5, 2, (n, numerics.group_count(k, group_size))) / fmt.max_integer
    scale_type = np.float16 if fmt.max_integer < 1e4 else np.float32
    packed = numerics.pack(codes.astype(np.uint8), fmt.storage_bits)
    return packed, scale.astype(scale_type), random.standard_normal(n).astype(np.float32)


# --- values ------------------------------------------------------------------------------------


@EVERY_FORMAT
def test_quantize(fmt: FloatFormat, evaluate: Evaluator) -> None:
    feed = {"x": hard_rows(fmt)}
    model = one_node(ops.quantize_op(fmt), ops.quantize_attributes(fmt), feed)
    found = evaluate(model, feed)
    for wanted, got in zip(numerics.quantize(feed["x"], fmt), found, strict=True):
        assert_same(wanted, got)


@EVERY_FORMAT
def test_quantize_next_to_ties(fmt: FloatFormat, evaluate: Evaluator) -> None:
    feed = {"x": rows_near_ties(fmt)}
    found = evaluate(one_node(ops.quantize_op(fmt), ops.quantize_attributes(fmt), feed), feed)
    assert_same(numerics.quantize(feed["x"], fmt)[0], found[0])


@EVERY_FORMAT
def test_quantize_smallest_rows(fmt: FloatFormat, evaluate: Evaluator) -> None:
    feed = {"x": smallest_rows()}
    found = evaluate(one_node(ops.quantize_op(fmt), ops.quantize_attributes(fmt), feed), feed)
    for wanted, got in zip(numerics.quantize(feed["x"], fmt), found, strict=True):
        assert_same(wanted, got)
    assert (found[1].ravel() > 0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (1, 1), (0, 4)])
def test_quantize_any_rank(shape: tuple[int, ...], evaluate: Evaluator) -> None:
    fmt = FORMATS["e3m4"]
    feed = {"x": np.random.default_rng(2).standard_normal(shape).astype(np.float32)}
    found = evaluate(one_node("FpQuantizeInt16", ops.quantize_attributes(fmt), feed), feed)
    for wanted, got in zip(numerics.quantize(feed["x"], fmt), found, strict=True):
        assert_same(wanted, got)


@EVERY_FORMAT
@pytest.mark.parametrize("k", [511, 512])
def test_unpack_every_byte(fmt: FloatFormat, k: int, evaluate: Evaluator) -> None:
    columns = k if fmt.storage_bits == 4 else 256
    number = np.isfinite(fmt.grid)
    packed = np.arange(256, dtype=np.uint8)
    if fmt.storage_bits == 8:
        packed = np.resize(packed[: fmt.grid.size][number], 256)
    feed = {"codes": np.stack([packed, packed[::-1]])}
    found = evaluate(one_node(ops.UNPACK, ops.unpack_attributes(fmt, columns), feed), feed)
    wanted = numerics.decode(numerics.unpack(feed["codes"], columns, fmt.storage_bits), fmt)
    assert_same(wanted, found[0])


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float32])
@pytest.mark.parametrize("scale_type", [np.float16, np.float32])
@pytest.mark.parametrize(("k", "group_size"), [(11, 4), (8, 4), (3, 8), (1, 1)])
def test_dequantize(
    dtype: npt.DTypeLike,
    scale_type: npt.DTypeLike,
    k: int,
    group_size: int,
    evaluate: Evaluator,
) -> None:
    random = np.random.default_rng(3)
    q = random.integers(-127, 128, (5, k)).astype(dtype)
    scale = random.standard_normal((5, numerics.group_count(k, group_size))).astype(scale_type)
    scale[0], scale[1] = np.nan, 0
    feed = {"q": q, "scale": scale}
    attributes = ops.dequantize_attributes(FORMATS["int8"], group_size)
    found = evaluate(one_node(ops.DEQUANTIZE, attributes, feed), feed)
    assert_same(numerics.dequantize(q, scale, group_size), found[0])


@EVERY_FORMAT
@pytest.mark.parametrize("act", [None, "e2m3", "e3m4", "e4m3"])
@pytest.mark.parametrize(("k", "group_size"), [(19, 8), (32, 16)])
def test_linear(
    fmt: FloatFormat, act: str | None, k: int, group_size: int, evaluate: Evaluator
) -> None:
    packed, weight_scale, bias = layer(fmt, 6, k, group_size)
    x = np.random.default_rng(4).standard_normal((5, k)).astype(np.float32)
    x[3] = 0
    q, scale = numerics.quantize(x, FORMATS[act]) if act else (x, np.ones(1, np.float32))
    feed = dict(zip(LINEAR_INPUTS, (q, scale, packed, weight_scale, bias), strict=True))
    attributes = ops.linear_attributes(FORMATS[act] if act else None, fmt, k, group_size)
    (found,) = evaluate(one_node(ops.LINEAR, attributes, feed), feed)
    weight = numerics.decode(numerics.unpack(packed, k, fmt.storage_bits), fmt)
    wanted = numerics.linear(q, scale, weight, weight_scale, bias, group_size)
    value = numerics.dequantize(weight, weight_scale, group_size)
    bound = linear_rounding_bound(q, scale, value, bias, weight_scale.shape[1])
    close = within(wanted, found, bound)
    assert close.ok, close.detail
    assert not within(wanted, np.roll(found, 1, axis=1), bound).ok


def test_linear_of_a_batch_with_a_poisoned_row(evaluate: Evaluator) -> None:
    fmt = FORMATS["e2m1"]
    packed, weight_scale, bias = layer(fmt, 4, 9, 8)
    x = np.random.default_rng(5).standard_normal((2, 3, 9)).astype(np.float32)
    x[1, 0, 2], x[0, 2, 8] = np.nan, np.inf
    q, scale = numerics.quantize(x, FORMATS["e2m3"])
    feed = dict(zip(LINEAR_INPUTS, (q, scale, packed, weight_scale, bias), strict=True))
    attributes = ops.linear_attributes(FORMATS["e2m3"], fmt, 9, 8)
    (found,) = evaluate(one_node(ops.LINEAR, attributes, feed), feed)
    poisoned = np.isnan(scale[..., 0])
    assert poisoned.sum() == 2
    assert found.shape == (2, 3, 4)
    assert np.array_equal(np.isnan(found), np.broadcast_to(poisoned[..., None], found.shape))


def test_one_body_serves_two_formats(evaluate: Evaluator) -> None:
    names = ("e2m1", "e3m0")
    nodes, outputs = [], {}
    for name in names:
        fmt = FORMATS[name]
        quantized, value = [f"q_{name}", f"scale_{name}"], [f"value_{name}"]
        given = ops.quantize_attributes(fmt)
        nodes.append(helper.make_node("FpQuantize", ["x"], quantized, domain=ops.DOMAIN, **given))
        unpack = ops.unpack_attributes(fmt, 31)
        nodes.append(helper.make_node(ops.UNPACK, ["codes"], value, domain=ops.DOMAIN, **unpack))
        outputs |= {quantized[0]: np.int8, quantized[1]: np.float32, value[0]: np.float32}
    x = np.random.default_rng(6).standard_normal((3, 40)).astype(np.float32)
    feed = {"x": x, "codes": np.arange(0, 256, 16, dtype=np.uint8)[None] + np.uint8(5)}
    model = make_model(nodes, feed, outputs)
    assert [f.name for f in model.functions] == ["FpQuantize", ops.UNPACK]
    found = evaluate(model, feed)
    for i, name in enumerate(names):
        q, scale = numerics.quantize(x, FORMATS[name])
        value = numerics.decode(numerics.unpack(feed["codes"], 31, 4), FORMATS[name])
        for wanted, got in zip((q, scale, value), found[3 * i : 3 * i + 3], strict=True):
            assert_same(wanted, got)


# --- models ------------------------------------------------------------------------------------


def example(op: str) -> onnx.ModelProto:
    """A valid model of one node `op`."""
    weight = FORMATS["e2m1"]
    if op in ops.QUANTIZE_OPS:
        fmt = next(f for f in FORMATS.values() if ops.quantize_op(f) == op)
        return one_node(op, ops.quantize_attributes(fmt), {"x": np.zeros((2, 5), np.float32)})
    packed, weight_scale, bias = layer(weight, 3, 5, 8)
    if op == ops.UNPACK:
        return one_node(op, ops.unpack_attributes(weight, 5), {"codes": packed})
    q, scale = np.zeros((2, 5), np.int8), np.zeros((2, 1), np.float32)
    if op == ops.DEQUANTIZE:
        return one_node(op, ops.dequantize_attributes(weight, 8), {"q": q, "scale": scale})
    feed = dict(zip(LINEAR_INPUTS, (q, scale, packed, weight_scale, bias), strict=True))
    return one_node(op, ops.linear_attributes(FORMATS["e2m3"], weight, 5, 8), feed)


@pytest.mark.parametrize("op", OUTPUTS)
def test_checker_and_strict_shape_inference(op: str) -> None:
    model = example(op)
    inferred = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    onnx.checker.check_model(inferred, full_check=True)
    shapes = [[d.dim_value for d in o.type.tensor_type.shape.dim] for o in inferred.graph.output]
    unknown = 0  # a Range, or how many groups there are, is not known before it runs
    q = [[2, 5], [2, unknown]]
    table = {ops.UNPACK: [[unknown, unknown]], ops.DEQUANTIZE: [[2, 5]], ops.LINEAR: [[2, 3]]}
    assert shapes == table.get(op, q)


@pytest.mark.parametrize("op", OUTPUTS)
def test_strict_shape_inference_refuses_a_wrong_type(op: str) -> None:
    model = example(op)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


@pytest.mark.parametrize(
    ("op", "functions"),
    [
        *((op, [op]) for op in ops.QUANTIZE_OPS),
        (ops.UNPACK, [ops.UNPACK]),
        (ops.DEQUANTIZE, [ops.DEQUANTIZE]),
        (ops.LINEAR, [ops.UNPACK, ops.DEQUANTIZE, ops.LINEAR]),
    ],
)
def test_attach_functions_brings_what_is_used(op: str, functions: list[str]) -> None:
    model = example(op)
    assert [f.name for f in model.functions] == functions
    ops.attach_functions(model)  # again
    assert [f.name for f in model.functions] == functions
    assert all(f.domain == ops.DOMAIN for f in model.functions)


def test_attach_functions_by_name_and_none() -> None:
    model = example(ops.LINEAR)
    ops.attach_functions(model, ["FpQuantize"])
    assert [f.name for f in model.functions] == ["FpQuantize"]
    ops.attach_functions(model, [])
    assert not model.functions


@pytest.mark.parametrize("op", OUTPUTS)
def test_a_node_has_every_attribute_of_its_function(op: str) -> None:
    node = example(op).graph.node[0]
    assert {a.name for a in node.attribute} == set(ops.function(op).attribute)
    standard = {n.op_type for n in ops.function(op).node if not n.domain}
    assert all(onnx.defs.has(name) for name in standard)


# --- attributes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "op"),
    [("e2m3", "FpQuantize"), ("e3m4", "FpQuantizeInt16"), ("e4m3", "FpQuantizeFloat")],
)
def test_quantize_op(name: str, op: str) -> None:
    assert ops.quantize_op(FORMATS[name]) == op


def test_attributes() -> None:
    e2m1, e2m3 = FORMATS["e2m1"], FORMATS["e2m3"]
    grid = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
    quantize = {"format": "e2m3", "mantissa_bits": 3, "max": 60}
    row = {"group_size": ops.WHOLE_ROW, "candidates": [60]}
    assert ops.quantize_attributes(e2m3) == {**quantize, **row}
    four_over_six = ops.quantize_attributes(e2m1, 16, [8])
    assert (four_over_six["group_size"], four_over_six["candidates"]) == (16, [12, 8])
    assert ops.dequantize_attributes(e2m1, 64) == {"format": "e2m1", "group_size": 64}
    assert ops.unpack_attributes(e2m1, 7) == {"format": "e2m1", "bits": 4, "grid": grid, "K": 7}
    shared = {"weight_format": "e2m1", "group_size": 64, "bits": 4, "grid": grid, "K": 7}
    row = {"act_group_size": ops.WHOLE_ROW}
    assert ops.linear_attributes(e2m3, e2m1, 7, 64) == {"act_format": "e2m3", **row, **shared}
    assert ops.linear_attributes(None, e2m1, 7, 64) == {"act_format": "", **row, **shared}


def test_codes_of_no_number_are_zero_in_the_table() -> None:
    grid = ops.unpack_attributes(FORMATS["e4m3"], 1)["grid"]
    assert (grid[0x7F], grid[0xFF], grid[0x7E]) == (0, 0, 229376)
