"""FpAttention: the reference against plain attention, the kernels against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from fp4dit_onnx import ops
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.attention import attention, exp
from fp4dit_onnx.numbers.compare import attention_rounding_bound, same_bits, sqnr_db, within
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.runtime.library import Library, library_path

Array = npt.NDArray[Any]
NAMES = ("q", "q_scale", "k", "k_scale", "v", "v_scale", "bias")
SHAPES = (
    (2, 5, 7, 3, 9),
    (1, 50, 300, 2, 72),
    (2, 49, 257, 1, 32),
    (1, 3, 512, 1, 64),
    (1, 1, 1, 1, 1),
)
"""Batch, queries, keys, heads, head size: whole tiles of 256 keys and 48 queries, and not."""


def operands(fmt: str, shape: tuple[int, ...], seed: int = 0, spread: float = 2.0) -> list[Array]:
    """q, k, v quantized, and a bias that masks some keys."""
    batch, queries, keys, heads, size = shape
    random = np.random.default_rng(seed)
    given: list[Array] = []
    for tokens in (queries, keys, keys):
        x = random.normal(0, spread, (batch, tokens, heads, size)).astype(np.float32)
        given += numerics.quantize(x, FORMATS[fmt])
    bias = np.where(random.random((batch, 1, 1, keys)) < 0.3, -10000, 0).astype(np.float32)
    bias[..., 0] = 0
    return [*given, bias]


def model(fmt: str, given: list[Array]) -> onnx.ModelProto:
    node = helper.make_node(
        ops.ATTENTION,
        NAMES,
        ["y"],
        name="attn1",
        domain=ops.DOMAIN,
        **ops.attention_attributes(FORMATS[fmt], given[0].shape[-1] ** -0.5),
    )
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim)
        for n, a in zip(NAMES, given, strict=True)
    ]
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 4)
    opsets = [helper.make_opsetid("", ops.OPSET), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
    graph = helper.make_graph([node], "graph", inputs, [y])
    result = helper.make_model(graph, opset_imports=opsets, ir_version=ops.IR_VERSION)
    ops.attach_functions(result)
    onnx.checker.check_model(result, full_check=True)
    return result


def run(fmt: str, given: list[Array], library: bool = True, threads: int = 2) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(
        model(fmt, given).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: Array = session.run(None, dict(zip(NAMES, given, strict=True)))[0]
    return found


def reference(fmt: str, given: list[Array]) -> Array:
    scale = float(np.float32(given[0].shape[-1] ** -0.5))
    return attention(*given, scale, FORMATS[fmt])  # type: ignore[arg-type]


def test_exp() -> None:
    x = np.concatenate([-np.geomspace(1e-30, 87, 20001), [0.0]]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(exp(x) / exact - 1).max() < 4e-6
    odd = np.array([np.nan, -np.inf, -87.001, -1e30], np.float32)
    assert same_bits(exp(odd), np.array([np.nan, 0, 0, 0], np.float32)).ok
    assert exp(np.float32([0]))[0] == 1


@pytest.mark.parametrize("fmt", ["e2m3", "e3m4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_attention(fmt: str, shape: tuple[int, ...]) -> None:
    """The reference, both evaluators of the body, and float64 agree to the derived bound."""
    given = operands(fmt, shape)
    found = reference(fmt, given)
    scale = shape[-1] ** -0.5
    bound = attention_rounding_bound(*given, scale)  # type: ignore[arg-type]
    q, k, v = (np.swapaxes(given[i].astype(np.float64) * given[i + 1], 1, 2) for i in (0, 2, 4))
    scores = q @ np.swapaxes(k, 2, 3) * scale + given[6]
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exact = np.swapaxes(e / e.sum(axis=-1, keepdims=True) @ v, 1, 2).astype(np.float32)
    body = ReferenceEvaluator(model(fmt, given)).run(None, dict(zip(NAMES, given, strict=True)))[0]
    for other in (exact, body, run(fmt, given, library=False)):
        assert within(found, other, bound).ok
        assert sqnr_db(exact, other) > 75
    assert not within(found, found * np.float32(1.01), bound).ok
    if shape[2] > 1:  # the bound notices a wrong scale of the scores
        wrong = attention(*given, scale * 1.02, FORMATS[fmt])  # type: ignore[arg-type]
        assert not within(wrong, exact, bound).ok


@pytest.mark.parametrize("isa", Library().isas)
@pytest.mark.parametrize("fmt", ["e2m3", "e2m1", "int8", "e3m2", "e3m4"])
def test_every_isa_has_the_bits_of_the_reference(isa: str, fmt: str) -> None:
    library = Library()
    library.select_isa(isa)
    try:
        library.reset_counters()
        for seed, shape in enumerate(SHAPES):
            given = operands(fmt, shape, seed)
            same = same_bits(run(fmt, given, threads=1 + seed % 2), reference(fmt, given))
            assert same.ok, f"{isa} {fmt} {shape}: {same.detail}"
        kind = np.dtype(FORMATS[fmt].integer_type).name
        ran = {key for key in library.counters() if key.startswith(f"{ops.ATTENTION}/{kind}/")}
        assert ran, library.counters()
    finally:
        library.select_isa(None)


@pytest.mark.parametrize("isa", Library().isas)
def test_rows_that_are_not_numbers(isa: str) -> None:
    """A spoiled query spoils its row, a spoiled key its head; masked keys have no say at all."""
    library = Library()
    library.select_isa(isa)
    try:
        shape = (2, 5, 300, 3, 8)
        given = operands("e2m3", shape)
        clean = run("e2m3", given)
        spoiled = [a.copy() for a in given]
        spoiled[1][1, 2, 0] = np.nan
        spoiled[3][0, 280, 1] = np.nan
        found = run("e2m3", spoiled)
        assert same_bits(found, reference("e2m3", spoiled)).ok
        bad = np.zeros(found.shape, bool)
        bad[1, 2, 0] = bad[0, :, 1] = True
        assert np.isnan(found[bad]).all()
        assert np.array_equal(found[~bad], clean[~bad])
        given[6][...] = -np.inf
        given[6][0, ..., 290:] = (
            0  # nothing to see in the first tile, and nothing at all in batch 1
        )
        found = run("e2m3", given)
        assert same_bits(found, reference("e2m3", given)).ok
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1]).all()
        alone = [a[:1, 290:] if 2 <= i < 6 else a[:1] for i, a in enumerate(given)]
        alone[6] = given[6][:1, ..., 290:]
        assert sqnr_db(run("e2m3", alone), found[:1]) > 75
    finally:
        library.select_isa(None)


@pytest.mark.parametrize(
    ("index", "shape", "dtype", "words"),
    [
        (0, (2, 5, 3, 9), np.int16, ["'q' is int16", "wanted int8", "'e2m3'"]),
        (2, (2, 7, 2, 9), np.int8, ["'k' has shape [2, 7, 2, 9]", "[2, 5, 3, 9]"]),
        (2, (2, 0, 3, 9), np.int8, ["'k_scale'"]),
        (4, (2, 6, 3, 9), np.int8, ["'v_scale'", "[2, 7, 3, 1]"]),
        (5, (2, 7, 3, 2), np.float32, ["'v_scale' is float [2, 7, 3, 2]", "one scale per row"]),
        (6, (2, 1, 5, 7), np.float32, ["'bias' is float [2, 1, 5, 7]", "[1 or 2, 1, 1, 1 or 7]"]),
        (6, (3, 1, 1, 7), np.float32, ["'bias'", "[3, 1, 1, 7]"]),
    ],
)
def test_what_does_not_fit_is_refused(
    index: int, shape: tuple[int, ...], dtype: npt.DTypeLike, words: list[str]
) -> None:
    given = operands("e2m3", SHAPES[0])
    given[index] = np.zeros(shape, dtype)
    with pytest.raises(Exception, match="FpAttention node 'attn1'") as caught:
        run("e2m3", given)
    for word in words:
        assert word in str(caught.value)


def test_wide_formats_and_heads_are_refused() -> None:
    given = [np.zeros((1, 2, 1, 257), np.int8), np.zeros((1, 2, 1, 1), np.float32)] * 3
    with pytest.raises(Exception, match="1 to 256"):
        run("e2m3", [*given, np.zeros((1, 1, 1, 1), np.float32)])
    floats = [np.zeros((1, 2, 1, 4), np.float32), np.zeros((1, 2, 1, 1), np.float32)] * 3
    with pytest.raises(Exception, match="'format' is 'e4m3', wanted one whose integers"):
        run("e4m3", [*floats, np.zeros((1, 1, 1, 1), np.float32)])
