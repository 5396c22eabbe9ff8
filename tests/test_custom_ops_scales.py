"""Multipliers, group scales of activations, rotations and candidates: kernels against the records.

Every instruction set of this machine, bit for bit; the C++ tests have the edges of memory and tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from one_operator import one_operator
from onnx import numpy_helper

from fp4dit_onnx import ops
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import same_bits
from fp4dit_onnx.numbers.formats import FORMATS, FloatFormat
from fp4dit_onnx.numbers.scale_formats import largest_multiplier
from fp4dit_onnx.runtime.library import Library, library_path

Array = npt.NDArray[Any]
NARROW = [fmt for fmt in FORMATS.values() if fmt.integer_type == np.int8]
ROWS = (0, 1, 2, 7, 150)
"""None, one (read from codes), few, several, more than are staged at once."""


@pytest.fixture(params=Library().isas)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    library = Library()
    library.select_isa(request.param)
    library.reset_counters()
    yield request.param
    library.select_isa(None)


def session(
    op: str, given: Mapping[str, Any], *inputs: Array, constant: int = 0, threads: int = 1
) -> ort.InferenceSession:
    """One node, whose last `constant` inputs are initializers."""
    model = one_operator(op, given, *inputs)
    model.graph.node[0].name = "blocks.0/fc"
    names = list(model.graph.node[0].input)
    for name, value in list(zip(names, inputs, strict=True))[len(inputs) - constant :]:
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        del model.graph.input[-1]
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def results(
    op: str, given: Mapping[str, Any], *inputs: Array, constant: int = 0, threads: int = 1
) -> list[Array]:
    """The node's outputs."""
    run = session(op, given, *inputs, constant=constant, threads=threads)
    feeds = zip(run.get_inputs(), inputs[: len(inputs) - constant], strict=True)
    return list(run.run(None, {info.name: value for info, value in feeds}))


def check(op: str, given: Mapping[str, Any], *inputs: Array, constant: int = 0) -> None:
    """The node's outputs are what its record says."""
    with np.errstate(all="ignore"):
        wanted = ops.OPERATORS[op].reference(given, inputs)
    threads = 1 + inputs[0].shape[0] % 2
    found = results(op, given, *inputs, constant=constant, threads=threads)
    for index, (own, reference) in enumerate(zip(found, wanted, strict=True)):
        outcome = same_bits(reference, own)
        shape = inputs[0].shape
        assert outcome.ok, f"{op} {dict(given)} of {shape}, output {index}: {outcome.detail}"


def random_rows(random: np.random.Generator, *shape: int) -> Array:
    """Ordinary rows, and one each of NaN, zeros, tiny and huge values, where there are so many."""
    x = random.standard_normal(shape).astype(np.float32)
    for row, value in enumerate((np.nan, 0.0, 1e-32, 3e38)):
        if 2 * row + 1 < shape[0]:
            x[2 * row + 1, random.integers(shape[1])] = value
            if row in (1, 2):
                x[2 * row + 1] = value
    return x


def weights(
    random: np.random.Generator, fmt: FloatFormat, n: int, k: int, group_size: int
) -> tuple[Array, Array, Array, Array]:
    """Codes, multipliers, channel scales, bias: the largest multipliers there may be among them."""
    sign = random.integers(0, 2, (n, k)) << (fmt.bits - 1)
    codes = random.integers(0, len(fmt.magnitudes), (n, k)) + sign
    groups = numerics.group_count(k, group_size)
    times = random.integers(0, largest_multiplier(fmt) + 1, (n, groups))
    times[0] = largest_multiplier(fmt)
    return (
        numerics.pack(codes.astype(np.uint8), fmt.storage_bits),
        numerics.pack(times.astype(np.uint8), 4),
        random.standard_normal(n).astype(np.float32),
        random.standard_normal(n).astype(np.float32),
    )


SHAPES = ((70, 150, 32, None), (3, 37, 8, 16), (67, 301, 16, 64), (9, 40, 7, 5), (1, 1, 1, None))
"""N, K, group size, inputs of a row per scale."""


def test_linear_integer(isa: str) -> None:
    random = np.random.default_rng(0)
    cases = [(a, w) for a in NARROW for w in NARROW]
    for index, (act, weight) in enumerate(cases):
        n, k, group_size, of_row = SHAPES[index % len(SHAPES)]
        given = ops.linear_integer_attributes(act, weight, k, group_size, of_row)
        parts = weights(random, weight, n, k, group_size)
        rows = ROWS[index // len(SHAPES) % len(ROWS)]
        q, scale = numerics.quantize(random_rows(random, rows, k), act, of_row)
        check(ops.LINEAR_INTEGER, given, q, scale, *parts, constant=4 * (index % 3 != 0))
    counted = Library().counters()
    assert counted[f"FpLinearInteger/int8/{isa}"] > len(cases) // 2


def test_linear_of_groups(isa: str) -> None:
    random = np.random.default_rng(1)
    for index, act in enumerate(FORMATS.values()):
        weight = FORMATS["e2m1" if index % 2 else "int8"]
        k, group_size, of_row = ((150, 32, 16), (203, 16, 64), (77, 100, 7))[index % 3]
        given = ops.linear_attributes(act, weight, k, group_size, of_row)
        codes, _, _, bias = weights(random, weight, 33, k, group_size)
        groups = numerics.group_count(k, group_size)
        steps = random.standard_normal((33, groups)).astype(np.float16)
        for rows in (1, 11):
            q, scale = numerics.quantize(random_rows(random, rows, k), act, of_row)
            check(ops.LINEAR, given, q, scale, codes, steps, bias, constant=3)
    assert f"FpLinear/int8/{isa}" in Library().counters()


@pytest.mark.parametrize("block", [2, 8, 64, 1024])
def test_hadamard(isa: str, block: int) -> None:
    random = np.random.default_rng(2)
    for k in (1, 7, 64, 203, 1152):
        check(ops.HADAMARD, {"block": block}, random_rows(random, 9, k))
    assert sum(Library().counters().values()) == 5


def test_quantizers(isa: str) -> None:
    random = np.random.default_rng(3)
    for index, fmt in enumerate(FORMATS.values()):
        for group_size in (1, 16, 31, 300):
            x = random_rows(random, 9, 203)
            given = ops.quantize_attributes(fmt, group_size)
            check(ops.quantize_op(fmt), given, x)
            constant = ops.static_attributes(fmt, 0.1 * group_size)
            check(ops.quantize_op(fmt, static=True), constant, x)
            if fmt.integer_type != np.int8:
                continue
            less = [float(v) for v in fmt.magnitudes[1:-1][-1 - index % 3 :]]
            check("FpQuantize", ops.quantize_attributes(fmt, group_size, less), x)
            both = {"block": 32, **ops.quantize_attributes(fmt, group_size)}
            check(ops.HADAMARD_QUANTIZE, both, x)


def test_candidates_of_many_groups(isa: str) -> None:
    """Four-over-six; ties too, where both candidates hold all values of most groups."""
    random = np.random.default_rng(4)
    given = ops.quantize_attributes(FORMATS["e2m1"], 16, [8])
    check("FpQuantize", given, random.standard_normal((300, 160)).astype(np.float32))
    check("FpQuantize", given, random.integers(-13, 14, (300, 160)).astype(np.float32))
    exact = np.array([-4, -2, -1, 0, 1, 2, 4], np.float32)
    check("FpQuantize", given, random.choice(exact, (300, 160)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({3: np.full((5, 2), 0x0B, np.uint8)}, ["'multipliers' has a 11", "e2m1", "at most 10"]),
        ({3: np.zeros((5, 1), np.uint8)}, ["'multipliers' has shape [5, 1]", "[5, 2]"]),
        ({4: np.zeros((5, 1), np.float32)}, ["'channel_scale' has shape [5, 1]", "[5]"]),
        ({"act_group_size": 0}, ["'act_group_size' is 0"]),
        ({"act_group_size": 16}, ["'scale' has shape [2, 1]", "groups in K = 3"]),
        ({"act_format": "e3m4"}, ["'e3m4'", "int8"]),
        ({"act_format": ""}, ["''", "int8"]),
        ({"groups": 4}, ["'groups' is 4", "3"]),
    ],
)
def test_refusals_name_the_node(changes: dict[Any, Any], words: list[str]) -> None:
    act, weight = FORMATS["e2m3"], FORMATS["e2m1"]
    given: dict[str, Any] = ops.linear_integer_attributes(act, weight, 40, 16)
    inputs: list[Array] = [np.ones((2, 40), np.int8), np.ones((2, 1), np.float32)]
    inputs += weights(np.random.default_rng(5), weight, 5, 40, 16)
    check(ops.LINEAR_INTEGER, given, *inputs)
    for key, value in changes.items():
        if isinstance(key, str):
            given[key] = value
        else:
            inputs[key] = value
    for constant in (0, 4):
        with pytest.raises(Exception, match=r"FpLinearInteger node 'blocks\.0/fc'") as error:
            results(ops.LINEAR_INTEGER, given, *inputs, constant=constant)
        for word in words:
            assert word in str(error.value)


def test_the_longest_row() -> None:
    """The library's bound is numerics.largest_sum of any int8 weights."""
    act, weight = FORMATS["int8"], FORMATS["e2m1"]
    longest = (numerics.SUM_LIMIT - 1) // numerics.largest_sum(act, FORMATS["int8"], 1)
    for k in (longest, longest + 1):
        given = ops.linear_integer_attributes(act, weight, k, 1024)
        parts = weights(np.random.default_rng(6), weight, 1, k, 1024)
        q, scale = np.full((1, k), 127, np.int8), np.ones((1, 1), np.float32)
        if k == longest:
            check(ops.LINEAR_INTEGER, given, q, scale, *parts, constant=4)
            continue
        with pytest.raises(Exception, match=f"an act_group_size of at most {longest}"):
            session(ops.LINEAR_INTEGER, given, q, scale, *parts)


def test_shapes_of_scales_are_inferred() -> None:
    fmt = FORMATS["int6"]
    given = {"block": 64, **ops.quantize_attributes(fmt, 64)}
    model = session(ops.HADAMARD_QUANTIZE, given, np.ones((2, 3, 200), np.float32))
    assert [o.shape for o in model.get_outputs()] == [[2, 3, 200], [2, 3, 4]]
