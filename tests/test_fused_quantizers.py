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
from fp4dit_onnx.numbers.norms import layer_norm, layer_norm_rounding_bound
from fp4dit_onnx.passes.fold_constants import FoldConstants
from fp4dit_onnx.passes.fuse_gelu import FuseGelu
from fp4dit_onnx.passes.fuse_norm import FuseNorm
from fp4dit_onnx.passes.pipeline import run_passes
from fp4dit_onnx.runtime.library import Library

Array = npt.NDArray[Any]
CASES = [
    (op, fmt, group_size)
    for op in (*ops.GELU_QUANTIZE, *ops.NORM_QUANTIZE)
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


def inputs(op: str, x: Array) -> list[Array]:
    """Of one of the operators, that has rows of its own for norms."""
    if op in ops.GELU_QUANTIZE:
        return [x]
    random = np.random.default_rng(1)
    x = x.reshape(-1, *(1, 2)[: x.ndim - 2], x.shape[-1])
    gain, shift = random.standard_normal((2, x.shape[-1])).astype(np.float32)
    return [x, gain, shift * np.float32(0.1)]


def attributes(op: str, fmt: str, group_size: int, block: int = 32) -> dict[str, Any]:
    """Of one of the operators."""
    given = ops.quantize_attributes(FORMATS[fmt], group_size)
    given = {"block": block, **given} if "Hadamard" in op else given
    return {"epsilon": 1e-6, **given} if op in ops.NORM_QUANTIZE else given


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
        parts = inputs(op, x)
        wanted, bounds = record.reference(given, parts), record.bound(given, parts)
        feed = dict(zip(ops.function(op).input, parts, strict=True))
        with np.errstate(all="ignore"):
            found = run(one_operator(op, given, *parts), feed)
        for reference, own, bound in zip(wanted, found, bounds, strict=True):
            close = within(reference, own, bound)
            assert close.ok, f"{op} {fmt}: {close.detail}"
        loose = bounds[0][6:] > 0  # of ordinary rows
        assert loose.mean() < (0.03 if op in ops.GELU_QUANTIZE else 0.5)
        assert not within(wanted[0][6:], wanted[0][6:] + 2, bounds[0][6:]).ok
        assert not within(wanted[1][6:], wanted[1][6:] * np.float32(1.01), bounds[1][6:]).ok


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
            parts = inputs(op, x)
            feed = dict(zip(ops.function(op).input, parts, strict=True))
            found = run_library(one_operator(op, given, *parts), feed)
            with np.errstate(all="ignore"):
                wanted = ops.OPERATORS[op].reference(given, parts)
            for reference, own in zip(wanted, found, strict=True):
                same = same_bits(reference, own)
                assert same.ok, f"{op} {fmt} [{k}]: {same.detail}"
    kinds = ("Quantize/int8", "Quantize/int16", "HadamardQuantize/int8")
    names = {f"Fp{name}{kind}/{isa}" for name in ("Gelu", "Norm") for kind in kinds}
    assert names == set(Library().counters())


@pytest.mark.parametrize(
    ("gain", "shift"),
    [
        ((3, 1, 40), (3, 5, 40)),
        ((5, 40), (1, 1, 40)),
        ((1, 5, 40), (40,)),
        ((3, 5, 40), (3, 1, 40)),
    ],
)
def test_gains_and_shifts_are_broadcast(gain: tuple[int, ...], shift: tuple[int, ...]) -> None:
    parts = [normal(3, 5, 40), normal(*gain), normal(*shift)]
    given = attributes("FpNormQuantize", "int8", ops.WHOLE_ROW)
    feed = dict(zip(("x", "gain", "shift"), parts, strict=True))
    found = run_library(one_operator("FpNormQuantize", given, *parts), feed)
    wanted = ops.OPERATORS["FpNormQuantize"].reference(given, parts)
    for reference, own in zip(wanted, found, strict=True):
        same = same_bits(reference, own)
        assert same.ok, same.detail


@pytest.mark.parametrize(
    ("shapes", "epsilon", "said"),
    [
        (((3, 5, 40), (5, 39), (40,)), 1e-6, r"'gain' has shape \[5, 39\]"),
        (((3, 5, 40), (2, 1, 40), (40,)), 1e-6, r"'gain' has shape \[2, 1, 40\]"),
        (((3, 5, 40), (40,), (1, 3, 5, 40)), 1e-6, r"'shift' has shape \[1, 3, 5, 40\]"),
        (((3, 5, 2, 40), (3, 1, 2, 40), (40,)), 1e-6, "broadcast"),
        (((5, 40), (40,), (40,)), -1.0, "'epsilon' is -1"),
        (((5, 40), (40,), (40,)), float("nan"), "'epsilon' is nan"),
    ],
)
def test_norms_that_are_refused(shapes: Any, epsilon: float, said: str) -> None:
    parts = [normal(*shape) for shape in shapes]
    given = {**attributes("FpNormQuantize", "int8", ops.WHOLE_ROW), "epsilon": epsilon}
    feed = dict(zip(("x", "gain", "shift"), parts, strict=True))
    with pytest.raises(Exception, match=said):
        run_library(one_operator("FpNormQuantize", given, *parts), feed)


def test_the_norm_is_onnxs() -> None:
    x, gain, shift = normal(7, 100) + np.float32(3), normal(100), normal(1, 100)
    wide = x.astype(np.float64)
    unit = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-6)
    apart = np.abs(layer_norm(x, gain, shift, 1e-6) - (unit * gain + shift))
    assert np.all(apart <= layer_norm_rounding_bound(x, gain, shift, 1e-6) / 2)


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


MODULATED = """g (float[2, 3, 40] x, float[2, 1, 40] gain, float[2, 1, 40] shift)
    => (int8[2, 3, 40] q, float[2, 3, G] scale{more}) {{
    one = Constant <value = float[1] {{1.0}}> ()
    width = Constant <value = int64[1] {{40}}> ()
    ones = Expand (one, width)
    unit = LayerNormalization <axis = {axis}, epsilon = 1e-6> (x, {own})
    scaled = Mul ({factors})
    y = Add (shift, scaled)
    q, scale = com.fp4dit.FpQuantize <{given}> (y)
    {last} }}"""


def modulated(**changes: str) -> str:
    """A norm, scaled and shifted, in ONNX's text form."""
    usual = {"more": "", "axis": "-1", "own": "ones", "factors": "unit, gain", "last": ""}
    return MODULATED.format(given=GIVEN, **{**usual, **changes})


FOLD = FoldConstants(frozenset())


@pytest.mark.parametrize("factors", ["unit, gain", "gain, unit"])
def test_a_norm_scaled_and_shifted(bench: PassBench, factors: str) -> None:
    parts = {
        "x": normal(2, 3, 40),
        "gain": normal(2, 1, 40),
        "shift": normal(1, 2, 40).reshape(2, 1, 40),
    }
    given = attributes("FpNormQuantize", "e2m3", 16)
    record = ops.OPERATORS["FpNormQuantize"]
    wanted = dict(zip(("q", "scale"), record.reference(given, list(parts.values())), strict=True))
    folded, _ = run_passes(bench.parse(modulated(factors=factors)), [FOLD])
    result, report = bench.rewrite(folded, FuseNorm(), parts, expected=wanted, bound=1e-6)
    assert (op_types(result), report.rewritten) == (["FpNormQuantize"], 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"last": "z = Neg (scaled)", "more": ", float[2, 3, 40] z"}, "others read"),
        ({"more": ", float[2, 3, 40] unit"}, "others read"),
        ({"axis": "1", "own": "wide"}, "not over the last axis"),
        ({"own": "gain"}, "weights of its own"),
    ],
)
def test_norms_that_are_left_alone(bench: PassBench, changes: dict[str, str], reason: str) -> None:
    text = modulated(**changes).replace(
        "ones = Expand", "wide = Expand (one, both)\n    ones = Expand"
    )
    text = text.replace(
        "width = Constant", "both = Constant <value = int64[2] {3, 40}> ()\n    width = Constant"
    )
    folded, _ = run_passes(bench.bare(text), [FOLD])
    _, (report,) = run_passes(folded, [FuseNorm()])
    assert report.rewritten == 0
    assert reason in report.skipped[0].reason
