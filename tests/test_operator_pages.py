"""The operators' pages: every example prints what it says, every reference is the operator."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from one_operator import one_operator, run_ort

from fp4dit_onnx import ops
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.attention import attention
from fp4dit_onnx.numbers.compare import (
    attention_rounding_bound,
    same_bits,
    within,
)
from fp4dit_onnx.numbers.formats import FORMATS, FloatFormat
from fp4dit_onnx.numbers.hadamard import hadamard
from fp4dit_onnx.numbers.scale_formats import largest_multiplier

pytest.importorskip("onnxruntime")

Array = npt.NDArray[Any]
PAGES = Path(__file__).resolve().parents[1] / "docs" / "ops"
OPERATORS = list(ops.OPERATORS)
EVERY_OPERATOR = pytest.mark.parametrize("op", OPERATORS)
EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
BLOCK = r"```python\n(.*?)```\n"


def page(op: str) -> str:
    return (PAGES / f"{op}_v{ops.VERSION}.md").read_text(encoding="utf-8")


def reference(name: str, op: str, *before: str) -> Callable[..., Any]:
    """The function `name` of an operator's page, after the references of the pages `before`."""
    names: dict[str, Any] = {}
    for each in (*before, op):
        text = page(each).split("## Reference implementation")[1]
        found = re.search(BLOCK, text, re.DOTALL)
        assert found, f"{each}: no reference"
        exec(compile(found[1], f"{each}_v1.md", "exec"), names)
    function: Callable[..., Any] = names[name]
    return function


def body(op: str, attributes: dict[str, Any], *inputs: Array) -> list[Array]:
    """The function body of `op` in ONNX Runtime."""
    feed = dict(zip(ops.function(op).input, inputs, strict=True))
    return run_ort(one_operator(op, attributes, *inputs), feed)


def assert_same(wanted: Array, found: Array) -> None:
    same = same_bits(wanted, found)
    assert same.ok, same.detail


# --- pages ---------------------------------------------------------------------------------------


def test_every_operator_has_a_page_and_no_other_has() -> None:
    found = {path.stem for path in PAGES.glob("*_v*.md")}
    assert found == {f"{op}_v{ops.VERSION}" for op in OPERATORS}
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    assert all(f"({stem}.md)" in index for stem in found)


@EVERY_OPERATOR
def test_the_example_prints_what_the_page_says(
    op: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page(op).split("## Example")[1]
    found = re.search(BLOCK + r"```text\n(.*?)```", text, re.DOTALL)
    assert found, f"{op}: no example with its output"
    exec(compile(found[1], f"{op}_v1.md", "exec"), {})
    assert capsys.readouterr().out == found[2]


@EVERY_OPERATOR
def test_the_tables_name_the_signature(op: str) -> None:
    text = page(op).split("## Definition")[0]
    rows = re.findall(r"^\| (\w+) \|", text, re.MULTILINE)
    function = ops.function(op)
    named = [*function.input, *function.output, *function.attribute]
    assert [row for row in rows if row not in ("inputs", "outputs", "attributes")] == named


# --- references ----------------------------------------------------------------------------------


def rows_of(fmt: FloatFormat) -> Array:
    """Rows [21, 40]: random, zeros, tiny, NaN, infinity, and every midpoint of the grid."""
    random = np.random.default_rng(3)
    x = random.standard_normal((20, 40)) * 10.0 ** random.uniform(-20, 20, (20, 1))
    x = x.astype(np.float32)
    x[0], x[1], x[2, 3], x[3, 5] = 0, 2.0**-91, np.nan, -np.inf
    middle = (fmt.magnitudes[:-1] + fmt.magnitudes[1:]) / 2
    ties = np.resize(middle, 40)
    ties[-1] = fmt.max_integer
    return np.concatenate([x, ties[None].astype(np.float32)])


NAMES = {
    "FpQuantize": "fp_quantize",
    "FpQuantizeInt16": "fp_quantize_int16",
    "FpQuantizeFloat": "fp_quantize_float",
}


@EVERY_FORMAT
@pytest.mark.parametrize("group_size", [ops.WHOLE_ROW, 16])
def test_quantize(fmt: FloatFormat, group_size: int) -> None:
    op, attributes = ops.quantize_op(fmt), ops.quantize_attributes(fmt, group_size)
    x = rows_of(fmt)
    limit = [fmt.max_integer] if op == "FpQuantize" else fmt.max_integer
    q, scale = reference(NAMES[op], op)(x, fmt.mantissa_bits, limit, group_size)
    assert_quantized(op, attributes, x, q, scale)


def assert_quantized(op: str, given: dict[str, Any], x: Array, q: Array, scale: Array) -> None:
    """A page's results are those of the record and of the body."""
    wanted, found = ops.OPERATORS[op].reference(given, [x]), body(op, given, x)
    for expected, own, ran in zip(wanted, (q, scale), found, strict=True):
        assert_same(expected, own.astype(expected.dtype))
        assert_same(ran, own.astype(ran.dtype))


@EVERY_FORMAT
def test_quantize_static(fmt: FloatFormat) -> None:
    op, x = ops.quantize_op(fmt, static=True), rows_of(fmt)
    for largest in (0.7, fmt.max_integer):
        page_of = reference(NAMES[ops.quantize_op(fmt)].replace("quantize", "quantize_static"), op)
        q, scale = page_of(x, fmt.mantissa_bits, fmt.max_integer, largest)
        assert_quantized(op, ops.static_attributes(fmt, largest), x, q, scale)


def test_four_over_six_rotated_or_not() -> None:
    fmt, x = FORMATS["e2m1"], rows_of(FORMATS["e2m1"])
    given = ops.quantize_attributes(fmt, 16, [8])
    q, scale = reference("fp_quantize", "FpQuantize")(x, 1, [12, 8], 16)
    assert_quantized("FpQuantize", given, x, q, scale)
    both = reference("fp_hadamard_quantize", ops.HADAMARD_QUANTIZE, "FpQuantize", ops.HADAMARD)
    rotated = {"block": 32, **ops.quantize_attributes(fmt, 16, [8])}
    with np.errstate(all="ignore"):
        q, scale = both(x, 32, 1, [12, 8], 16)
    assert_quantized(ops.HADAMARD_QUANTIZE, rotated, x, q, scale)


@pytest.mark.parametrize("op", [*ops.GELU_QUANTIZE, *ops.NORM_QUANTIZE])
def test_quantizers_of_what_comes_first(op: str) -> None:
    wide = "Int16" in op
    fmt = FORMATS["e3m4" if wide else "e2m3"]
    given, inputs = ops.quantize_attributes(fmt, 16), [rows_of(fmt)]
    limit = fmt.max_integer if wide else [fmt.max_integer]
    sizes: tuple[Any, ...] = (fmt.mantissa_bits, limit, 16)
    if "Hadamard" in op:
        given, sizes = {"block": 8, **given}, (8, *sizes)
    if op in ops.NORM_QUANTIZE:
        given, sizes = {"epsilon": 1e-6, **given}, (1e-6, *sizes)
        inputs.extend(np.random.default_rng(9).standard_normal((2, 1, 40)).astype(np.float32))
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", op).lower()
    pages = ("FpQuantizeInt16",) if wide else ("FpQuantize", ops.HADAMARD, ops.HADAMARD_QUANTIZE)
    before = (ops.LINEAR, ops.ATTENTION, *pages, "FpGeluQuantize", "FpNormQuantize")
    with np.errstate(all="ignore"):
        found = reference(name, op, *before)(*inputs, *sizes)
        expected = ops.OPERATORS[op].reference(given, inputs)
    for wanted, own in zip(expected, found, strict=True):
        assert_same(wanted, own.astype(wanted.dtype))


@pytest.mark.parametrize("block", [2, 8, 32, 1024])
def test_hadamard(block: int) -> None:
    x = np.random.default_rng(8).standard_normal((2, 3, 43)).astype(np.float32)
    found = reference("fp_hadamard", ops.HADAMARD)(x, block)
    assert_same(hadamard(x, block), found)
    assert_same(body(ops.HADAMARD, {"block": block}, x)[0], found)


@pytest.mark.parametrize("group_size", [1, 7, 40])
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float32])
def test_dequantize(dtype: type, group_size: int) -> None:
    random = np.random.default_rng(4)
    q = random.integers(-127, 128, (3, 40)).astype(dtype)
    scale = random.standard_normal((3, -(-40 // group_size))).astype(np.float16)
    scale[0, 0] = np.nan
    found = reference("fp_dequantize", ops.DEQUANTIZE)(q, scale, group_size)
    attributes = ops.dequantize_attributes(FORMATS["int8"], group_size)
    assert_same(numerics.dequantize(q, scale, group_size), found)
    assert_same(body(ops.DEQUANTIZE, attributes, q, scale)[0], found)


def codes_of(fmt: FloatFormat, n: int, k: int) -> Array:
    """Random codes of numbers, [n, k]."""
    random = np.random.default_rng(5)
    magnitude = random.integers(0, len(fmt.magnitudes), (n, k))
    sign = random.integers(0, 2, (n, k)) << (fmt.bits - 1)
    return (magnitude + sign).astype(np.uint8)


@EVERY_FORMAT
def test_unpack(fmt: FloatFormat) -> None:
    codes = codes_of(fmt, 5, 33)
    packed = numerics.pack(codes, fmt.storage_bits)
    attributes = ops.unpack_attributes(fmt, 33)
    found = reference("fp_unpack", ops.UNPACK)(packed, fmt.storage_bits, attributes["grid"], 33)
    assert_same(numerics.decode(codes, fmt), found)
    assert_same(body(ops.UNPACK, attributes, packed)[0], found)


@pytest.mark.parametrize(
    ("act", "weight", "of_row"),
    [
        ("e2m3", "e2m1", None),
        ("e3m4", "e3m0", None),
        ("int8", "int4", 32),
        (None, "e1m2", None),
        ("e4m3", "e5m2", 150),
        ("e4m3", "e2m1", 128),
    ],
)
def test_linear(act: str | None, weight: str, of_row: int | None) -> None:
    m, n, k, group_size = 5, 6, 150, 64
    random = np.random.default_rng(6)
    fmt = FORMATS[weight]
    x = random.standard_normal((m, k)).astype(np.float32)
    x[1] = 0
    one = np.ones(1, np.float32)
    q, scale = (x, one) if act is None else numerics.quantize(x, FORMATS[act], of_row)
    codes = codes_of(fmt, n, k)
    packed = numerics.pack(codes, fmt.storage_bits)
    steps = random.uniform(0.5, 2, (n, 3)).astype(np.float16)
    bias = random.standard_normal(n).astype(np.float32)
    given = ops.linear_attributes(FORMATS[act] if act else None, fmt, k, group_size, of_row)
    inputs = (q, scale, packed, steps, bias)
    sizes = (group_size, given["act_group_size"], k, fmt.storage_bits, given["grid"])
    found = reference("fp_linear", ops.LINEAR)(*inputs, *sizes)
    assert_linear(ops.LINEAR, given, inputs, found)
    if act is None or fmt.max_integer > 127 or FORMATS[act].max_integer > 127:
        return
    times = random.integers(0, largest_multiplier(fmt) + 1, (n, 3)).astype(np.uint8)
    channel = random.uniform(0.5, 2, n).astype(np.float32)
    integer = ops.linear_integer_attributes(FORMATS[act], fmt, k, group_size, of_row)
    multipliers = numerics.pack(times, 4)
    inputs = (q, scale, packed, multipliers, channel, bias)
    found = reference("fp_linear_integer", ops.LINEAR_INTEGER, ops.LINEAR)(*inputs, *sizes)
    assert_linear(ops.LINEAR_INTEGER, integer, inputs, found)
    signs(integer, inputs)
    scales = reference("fp_scale", ops.SCALE)(multipliers, channel, 3)
    assert_same(body(ops.SCALE, ops.scale_attributes(3), multipliers, channel)[0], scales)


def signs(given: dict[str, Any], inputs: Sequence[Array]) -> None:
    """The same with signs beyond the first 64 inputs; and the salient inputs of its activations."""
    q, scale, _, *rest = inputs
    fmt, k = FORMATS[given["weight_format"]], given["K"]
    both = ops.sign_attributes(k, 64)
    codes = codes_of(fmt, 6, k)
    codes[:, 64:] = codes[:, 64:] & 8 | 1
    packed = numerics.pack(codes, 4, 64)
    unpack = ops.unpack_attributes(fmt, k) | both
    found = reference("fp_unpack_signs", ops.UNPACK_SIGNS, ops.UNPACK)(
        packed, 4, unpack["grid"], k, **both
    )
    assert_same(numerics.decode(codes, fmt), found)
    assert_same(body(ops.UNPACK_SIGNS, unpack, packed)[0], found)
    names = ("group_size", "act_group_size", "K", "bits", "grid", "wide", "signs")
    sizes = [(given | both)[name] for name in names]
    pages = (ops.LINEAR_SIGNS, ops.UNPACK, ops.UNPACK_SIGNS, ops.LINEAR, ops.LINEAR_INTEGER)
    parts = (q, scale, packed, *rest)
    found = reference("fp_linear_signs", *pages)(*parts, *sizes)
    assert_linear(ops.LINEAR_SIGNS, given | both, parts, found)


def test_salient() -> None:
    random = np.random.default_rng(9)
    x, mask = random.standard_normal((2, 3, 43)).astype(np.float32), random.bytes(6)
    bits = np.frombuffer(mask, np.uint8)
    found = reference("fp_salient", ops.SALIENT)(x, bits)
    assert_same(ops.OPERATORS[ops.SALIENT].reference({}, [x, bits])[0], found)
    assert_same(body(ops.SALIENT, {}, x, bits)[0], found)


def assert_linear(op: str, given: dict[str, Any], inputs: Sequence[Array], found: Array) -> None:
    """A page's result is the record's, and near the body's."""
    record = ops.OPERATORS[op]
    assert record.bound is not None
    assert_same(record.reference(given, inputs)[0], found)
    close = within(found, body(op, given, *inputs)[0], record.bound(given, inputs))
    assert close.ok, close.detail


@pytest.mark.parametrize("name", ["e2m1", "e2m3", "e3m4"])
def test_attention(name: str) -> None:
    fmt, random = FORMATS[name], np.random.default_rng(7)
    parts: list[Array] = []
    for tokens in (4, 300, 300):  # a whole tile of keys and a part of one
        parts += numerics.quantize(
            random.standard_normal((2, tokens, 2, 12)).astype(np.float32), fmt
        )
    bias = random.standard_normal((2, 1, 1, 300)).astype(np.float32)
    bias[1, ..., 200:] = -10000
    inputs = [*parts, bias]
    wanted = attention(*inputs, 0.3, fmt)
    attend = reference("fp_attention", ops.ATTENTION, "FpQuantize", ops.LINEAR)
    assert_same(wanted, attend(*inputs, 0.3, fmt.max_integer))
    assert not same_bits(wanted, attend(*inputs, 0.31, fmt.max_integer)).ok
    (ran,) = body(ops.ATTENTION, ops.attention_attributes(fmt, 0.3), *inputs)
    close = within(wanted, ran, attention_rounding_bound(*inputs, 0.3))
    assert close.ok, close.detail


def test_a_wrong_reference_is_found() -> None:
    quantize = reference("fp_quantize", "FpQuantize")
    fmt = FORMATS["e2m1"]
    x = rows_of(fmt)
    q, _ = quantize(x, fmt.mantissa_bits + 1, [fmt.max_integer], ops.WHOLE_ROW)
    assert not same_bits(numerics.quantize(x, fmt)[0], q.astype(np.int8)).ok
