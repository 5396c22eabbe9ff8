"""Quantizers of what they compute first: the definition, bodies, kernels, the pass, and readers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from one_operator import one_operator, run_library, run_ort, run_reference
from pass_bench import PassBench, normal, op_types

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.calls import take_apart
from fp4dit_onnx.numbers.activations import gelu, gelu_rounding_bound
from fp4dit_onnx.numbers.compare import same_bits, within
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.passes.fuse_gelu import FuseGelu
from fp4dit_onnx.runtime.library import Library

Array = npt.NDArray[Any]
CASES = [
    (op, fmt, group_size)
    for op in ops.GELU_QUANTIZE
    for fmt in ("e2m1", "e2m3", "int8", "e3m4")
    if ops.OPERATORS[op].results[0] == FORMATS[fmt].integer_type
    for group_size in (ops.WHOLE_ROW, 48)
]


def rows(k: int) -> Array:
    """Rows [40, k] of several sizes; zeros, NaN, infinities, tiny and large values."""
    random = np.random.default_rng(k)
    x = random.standard_normal((40, k)) * 10.0 ** random.uniform(-2, 1, (40, 1))
    x[0], x[1] = 0, -1e-30
    x[2, 3], x[3, 1], x[4, 2] = np.nan, np.inf, -np.inf
    x[5, :2] = -3e38, 1
    return x.astype(np.float32)


def attributes(op: str, fmt: str, group_size: int, block: int = 32) -> dict[str, Any]:
    """Of one of the operators."""
    given = ops.quantize_attributes(FORMATS[fmt], group_size)
    return {"block": block, **given} if "Hadamard" in op else given


def test_the_gelu_is_torchs() -> None:
    x = np.concatenate([np.linspace(-30, 30, 6001), [0, -1e-30, 1e30]]).astype(np.float32)
    wide = x.astype(np.float64)
    exact = wide * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    assert np.all(np.abs(gelu(x) - exact) <= gelu_rounding_bound(x) / 3)
    assert np.isnan(gelu(np.array([np.nan, np.inf, -np.inf], np.float32))).all()


@pytest.mark.parametrize("run", [run_ort, run_reference], ids=["ort", "reference"])
def test_bodies_agree_within_a_bound_that_tells(run: Any) -> None:
    x = rows(100)
    for op, fmt, group_size in CASES:
        given, record = attributes(op, fmt, group_size), ops.OPERATORS[op]
        assert record.bound is not None
        wanted, bounds = record.reference(given, [x]), record.bound(given, [x])
        with np.errstate(all="ignore"):
            found = run(one_operator(op, given, x), {"x": x})
        for reference, own, bound in zip(wanted, found, bounds, strict=True):
            close = within(reference, own, bound)
            assert close.ok, f"{op} {fmt}: {close.detail}"
        loose = bounds[0][6:] > 0  # of ordinary rows
        assert loose.mean() < 0.03
        assert not within(wanted[0][6:], wanted[0][6:] + 1, bounds[0][6:]).ok
        assert not within(wanted[1][6:], wanted[1][6:] * np.float32(1.001), bounds[1][6:]).ok


@pytest.fixture(params=Library().isas)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    library = Library()
    library.select_isa(request.param)
    library.reset_counters()
    yield request.param
    library.select_isa(None)


def test_kernels_have_the_references_bits(isa: str) -> None:
    for op, fmt, group_size in CASES:
        long = ((1153, 1024), (9000, 2)) if fmt in ("e2m3", "e3m4") else ()
        for k, block in ((100, 32), *long):
            x, given = rows(k)[: 40 if k == 100 else 7], attributes(op, fmt, group_size, block)
            found = run_library(one_operator(op, given, x), {"x": x})
            for reference, own in zip(ops.OPERATORS[op].reference(given, [x]), found, strict=True):
                same = same_bits(reference, own)
                assert same.ok, f"{op} {fmt} [{k}]: {same.detail}"
    kinds = ("FpGeluQuantize/int8", "FpGeluQuantize/int16", "FpGeluHadamardQuantize/int8")
    assert {f"{kind}/{isa}" for kind in kinds} == set(Library().counters())


GIVEN = 'format = "e2m3", mantissa_bits = 3, max = 60.0, group_size = 16, candidates = [60.0]'
GRAPH = """g (float[2, 40] x) => ({type}[2, 40] q, float[2, G] scale{more}) {{
    y = Gelu <approximate = "{approximate}"> (x)
    q, scale = com.fp4dit.{op} <{given}> (y)
    {last} }}"""


def graph(op: str = "FpQuantize", approximate: str = "tanh", last: str = "") -> str:
    """The pattern in ONNX's text form."""
    given = GIVEN.replace("e2m3", "e3m4").replace("= 3,", "= 4,").replace("60.0", "1984.0")
    more = ", float[2, 40] z" if last else ""
    kind, own = ("int16", given) if "Int16" in op else ("int8", GIVEN)
    own = f"block = 8, {own}" if "Hadamard" in op else own
    return GRAPH.format(type=kind, more=more, approximate=approximate, op=op, given=own, last=last)


@pytest.mark.parametrize("op", ["FpQuantize", "FpQuantizeInt16", ops.HADAMARD_QUANTIZE])
def test_the_pass_and_taking_apart(bench: PassBench, op: str) -> None:
    x, fused = normal(2, 40), op.replace("Fp", "FpGelu", 1)
    given = attributes(op, "e3m4" if "Int16" in op else "e2m3", 16, 8)
    wanted = dict(zip(("q", "scale"), ops.OPERATORS[fused].reference(given, [x]), strict=True))
    result, report = bench.rewrite(graph(op), FuseGelu(), {"x": x}, expected=wanted, bound=1e-6)
    assert (op_types(result), report.rewritten, report.skipped) == ([fused], 1, ())
    take_apart(result.graph)
    ops.attach_functions(result)
    assert op_types(result)[-1] == op
    onnx.checker.check_model(result, full_check=True)
    for name, value in bench.run(result, {"x": x}).items():
        close = within(value, wanted[name], 1e-6)
        assert close.ok, close.detail


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (graph(approximate="none"), "by the error function"),
        (graph(last="z = Neg (y)"), "read by FpQuantize, Neg"),
        (graph().replace("float[2, G] scale", "float[2, G] scale, float[2, 40] y"), "read by Fp"),
    ],
)
def test_what_is_left_alone(bench: PassBench, text: str, reason: str) -> None:
    result, report = bench.rewrite(text, FuseGelu(), {"x": normal(2, 40)})
    assert "Gelu" in op_types(result)
    assert report.rewritten == 0
    assert reason in report.skipped[0].reason
