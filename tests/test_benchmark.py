"""Benchmark: cases, what backends compute, who is absent and why."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fp4dit_onnx import ops
from fp4dit_onnx.benchmark import (
    BASELINES,
    DEFAULT_SHAPES,
    PEERS,
    AttentionCase,
    Backend,
    LinearCase,
    Loaded,
    Settings,
    backend,
    backends,
    machine,
    parse_sizes,
    run_case,
)
from fp4dit_onnx.benchmark.case import CHECKED_ROWS, sample_rows
from fp4dit_onnx.benchmark.linear import layer_of, ours
from fp4dit_onnx.benchmark.requests import Formats, operator_cases
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.runtime.library import supported_isas
from fp4dit_onnx.spec.spec import PerGroup
from fp4dit_onnx.system.progress import SilentReporter

SMALL = Settings(threads=1, seconds=0.0, rounds=1)
W4A6 = Formats().layer()
LEAST_DB = {
    "ort-float32": 110.0,
    "openvino-float32": 110.0,
    "ort-int8": 35.0,
    "torch-bf16": 40.0,
    "openvino-bf16": 40.0,
    "ort-matmulnbits": 17.0,
    "openvino-u4": 17.0,
    "openvino-u4-int8": 17.0,
    "ort-matmul-softmax": 110.0,
    "ort-mha": 110.0,
    "ort-attention": 110.0,
    "torch-float32": 110.0,
}
"""What a peer must reach on normal random numbers: other than this it computes something else."""


def test_sizes_are_read() -> None:
    assert parse_sizes("1024x1152x4608", "MxKxN") == (1024, 1152, 4608)
    assert parse_sizes(" 2X64x3x8 ", "BxSxHxD") == (2, 64, 3, 8)
    for text in ("", "12", "1x2", "1x2x3x4", "0x2x3", "-1x2x3", "1x2x3.5", "axbxc"):
        with pytest.raises(UsageError, match="expected MxKxN, 3 positive integers"):
            parse_sizes(text, "MxKxN")


@pytest.mark.parametrize("count", [1, 2, CHECKED_ROWS, CHECKED_ROWS + 1, 5000])
def test_checked_rows_reach_both_ends(count: int) -> None:
    rows = sample_rows(count)
    assert (rows[0], rows[-1]) == (0, count - 1)
    assert len(set(rows.tolist())) == min(count, CHECKED_ROWS)


def test_cases_of_a_request() -> None:
    cases = operator_cases([], [], Formats(), default=True)
    assert [case.name for case in cases] == ["x".join(map(str, s)) for s in DEFAULT_SHAPES]
    assert operator_cases([], [], Formats(), default=False) == []
    (case,) = operator_cases([], ["1x8x2x16"], Formats("w4a8"), default=True)
    assert isinstance(case, AttentionCase)
    assert (case.format, case.operations) == ("e3m4", 4 * 2 * 8 * 8 * 16)


@pytest.mark.parametrize(
    ("formats", "weight", "activation", "product"),
    [
        (Formats(), "e2m1", "e2m3", "int8"),
        (Formats("w4a8", "e3m0"), "e3m0", "e3m4", "int16"),
        (Formats("w4a16"), "e2m1", None, "float"),
        (Formats("w8a8", activation="e4m3"), "int8", "e4m3", "float"),
    ],
)
def test_formats(formats: Formats, weight: str, activation: str | None, product: str) -> None:
    spec = formats.layer()
    assert (*spec.formats, spec.group_size) == (weight, activation, 128)
    assert LinearCase(1, 8, 8, spec).product == product


def test_formats_by_evidence_need_weights() -> None:
    with pytest.raises(UsageError, match="expected one of e2m1, e1m2, e3m0"):
        Formats(weight="auto").layer()


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize(
    "formats",
    [
        Formats(),
        Formats("w4a8", hadamard=64),
        Formats("w4a8", scale="int4*f32"),
        Formats("w4a16"),
        Formats("w8a8"),
        Formats(group_size=32, scale="int4*f32", hadamard=64),
        Formats(activation="int6", group_size=32, scale="int4*f32", activation_group_size=64),
        Formats("w4a4", group_size=32, scale="int4*f32", activation_group_size=16),
    ],
)
def test_ours_gives_the_reference_bits(isa: str, formats: Formats) -> None:
    case = LinearCase(3, 200, 7, formats.layer())  # a short second group
    loaded = ours(isa).load(case, 1)
    loaded.run()
    layer, spec = layer_of(case), case.spec
    act, of_row = spec.activation_format, spec.activation_group_size
    x = spec.input_ops[0](case.x) if spec.input_ops else case.x
    q, scale = x, np.ones(1, np.float32)
    if act is not None and spec.input is not None:
        q, scale = numerics.quantize(x, act, of_row, spec.input.candidates)
    if spec.scale_format.multiplied and act is not None and act.integer_type == np.int8:
        given = ops.linear_integer_attributes(act, spec.weight_format, 200, 32, of_row)
        inputs = (q, scale, *layer.parts.values(), case.bias)
        (expected,) = ops.OPERATORS[ops.LINEAR_INTEGER].reference(given, inputs)
    else:
        expected = numerics.linear(q, scale, layer.integers(), layer.scale, case.bias, 128)
    np.testing.assert_array_equal(loaded.result(), expected)
    assert (case.sqnr(expected) or 0) > 15  # the weight is rotated as its inputs are


def test_scales_that_float16_cannot_hold_stay_float32() -> None:
    case = LinearCase(1, 8, 4, W4A6.with_weight(granularity=PerGroup(8)))
    assert layer_of(case).scale.dtype == np.float16
    case.weight[0] = 1e-6
    layer = layer_of(case)
    assert layer.scale.dtype == np.float32
    np.testing.assert_allclose(layer.weight()[0], 1e-6, rtol=1e-6)
    case.weight[:] = 0
    assert not layer_of(case).scale.any()


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize(("bits", "least"), [("w4a6", 20.0), ("w4a8", 28.0)])
def test_our_attention_is_as_near_as_its_formats(isa: str, bits: str, least: float) -> None:
    (case,) = operator_cases([], ["2x40x3x16"], Formats(bits), default=False)
    everyone = backends("attention", [isa], [])
    report = run_case(case, everyone, "nobody", SMALL, SilentReporter())
    assert report.absent == {}
    (outcome,) = report.outcomes
    assert outcome.ratio is None
    assert least < (outcome.sqnr_db or 0) < least + 20


def test_attention_in_float_is_not_ours() -> None:
    (case,) = operator_cases([], ["1x4x1x8"], Formats("w4a16"), default=False)
    everyone = backends("attention", ["scalar"], [])
    report = run_case(case, everyone, "nobody", SMALL, SilentReporter())
    assert "not quantized" in report.absent["fp4dit scalar"]


SMALL_CASES = {
    "linear": LinearCase(9, 256, 24, W4A6),
    "attention": AttentionCase(2, 12, 3, 16),
}


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize(
    ("kind", "peer"), [(kind, peer.name) for kind in SMALL_CASES for peer in PEERS[kind]]
)
def test_peers_compute_the_same(kind: str, peer: str) -> None:
    (chosen,) = (one for one in PEERS[kind] if one.name == peer)
    report = run_case(SMALL_CASES[kind], [chosen], peer, SMALL, SilentReporter())
    if reason := report.absent.get(peer):
        pytest.skip(reason)
    (outcome,) = report.outcomes
    assert outcome.sqnr_db is not None
    assert outcome.sqnr_db > LEAST_DB[peer]
    assert outcome.ratio is not None
    assert outcome.ratio.median == 1.0


def test_sqnr_tells_a_wrong_result() -> None:
    case = LinearCase(5, 16, 3, W4A6)
    right = (case.x.astype(np.float64) @ case.weight.T + case.bias).astype(np.float32)
    assert (case.sqnr(right) or 0) > 130
    assert (case.sqnr(np.ascontiguousarray(right[::-1])) or 0) < 10
    with pytest.raises(ValueError, match=r"shape \(5, 2\), expected \(5, 3\)"):
        case.sqnr(right[:, :2])
    with pytest.raises(ValueError, match="not finite"):
        case.sqnr(right * np.float32(np.nan))


def fake(name: str, result: Any, **options: Any) -> Backend[LinearCase]:
    """A backend that computes nothing; an exception in place of a result is raised."""

    def load(case: LinearCase, threads: int) -> Loaded:
        if isinstance(result, Exception):
            raise result
        return Loaded(lambda: None, lambda: np.asarray(result(case), np.float32))

    return Backend(name, "makes it up", load, **options)


def test_absent_backends_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def right(case: LinearCase) -> Any:
        return case.x.astype(np.float64) @ case.weight.T + case.bias

    everyone = [
        fake("base", right),
        fake("ours", right, isa="avx9"),
        fake("broken", RuntimeError("no such operator\nat line 3")),
        fake("mute", RuntimeError()),
        fake("short", lambda case: right(case)[1:]),
        fake("poisoned", lambda case: right(case) * np.nan),
        fake("foreign", right, package="no_such_package_at_all"),
    ]
    case = LinearCase(4, 16, 3, W4A6)
    settings = dataclasses.replace(SMALL, rounds=3, limits={"avx9": {"int8": 1e9}})
    monkeypatch.setitem(backend.EXTRAS, "no_such_package_at_all", "bench")
    report = run_case(case, everyone, "base", settings, SilentReporter())
    assert [outcome.name for outcome in report.outcomes] == ["base", "ours"]
    assert report.absent == {
        "broken": "RuntimeError: no such operator",
        "mute": "RuntimeError: no message",
        "short": "ValueError: a result of shape (3, 3), expected (4, 3)",
        "poisoned": "ValueError: a result with numbers that are not finite",
        "foreign": "no_such_package_at_all is not installed: "
        "run  pip install 'fp4dit-onnx[bench]'",
    }
    base, own = report.outcomes
    assert (own.rounds, base.limit_share) == (3, None)
    assert own.gops == pytest.approx(1e-9 * 2 * 4 * 16 * 3 / own.seconds.median)
    assert own.limit_share == pytest.approx((own.gops or 0) / 1e9)
    assert own.seconds.low <= own.seconds.median <= own.seconds.high


def test_a_package_that_breaks_on_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    (peer,) = (one for one in PEERS["linear"] if one.name == "openvino-bf16")
    monkeypatch.setattr(Backend, "why_absent", lambda self: None)
    report = run_case(SMALL_CASES["linear"], [peer], "ort-float32", SMALL, SilentReporter())
    assert "openvino is not installed" in report.absent["openvino-bf16"]


def test_tables_have_distinct_names_and_a_baseline() -> None:
    assert set(PEERS) == set(BASELINES)
    for kind, table in PEERS.items():
        names = [peer.name for peer in table]
        assert len(names) == len(set(names))
        assert BASELINES[kind] in names


def test_known_reasons_come_without_loading() -> None:
    unready = fake("unready", RuntimeError("it was loaded"), absent="not built yet")
    report = run_case(SMALL_CASES["linear"], [unready], "base", SMALL, SilentReporter())
    assert report.absent == {"unready": "not built yet"}


def test_choosing_backends() -> None:
    everyone = [one.name for one in backends("step", ["avx2", "scalar"], None)]
    assert everyone[:2] == ["fp4dit avx2", "fp4dit scalar"]
    assert "ort-float32" in everyone
    assert "ort-functions" not in everyone, "it is slow and runs only if named"
    named = backends("step", [], ["ort-functions", "torch-bf16"])
    assert [one.name for one in named] == ["ort-functions"]


def test_cpu_model(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast One\nflags\t: x\n")
    assert machine.cpu_model(tmp_path / "cpuinfo") == "Fast One"
    assert machine.cpu_model(tmp_path / "absent")
