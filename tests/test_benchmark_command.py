"""Benchmark of a whole step, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from manifests import EMPTY

from fp4dit_onnx.benchmark import (
    DEFAULT_SHAPES,
    Backend,
    Settings,
    StepCase,
    backends,
    machine,
    requests,
    run_case,
    sessions,
)
from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.runtime.library import supported_isas
from fp4dit_onnx.system.progress import SilentReporter
from fp4dit_onnx.targets.tiny_model import tiny_linear

SMALL = Settings(threads=1, seconds=0.0, rounds=1)


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "dot_product_limit", lambda isa, kind, threads: 100.0)


FLOAT_MODEL = """
<ir_version: 10, opset_import: ["": 21]>
g (float[batch, 32] x) => (float[batch, 4] y) {
    columns = Transpose <perm = [1, 0]> (weight)
    product = MatMul (x, columns)
    y = Add (product, bias)
}
"""


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """A quantized model [batch, 32] -> [batch, 4], in a bundle's place, and its float model."""
    quantized = tiny_linear()
    for info in (*quantized.graph.input, *quantized.graph.output):
        info.type.tensor_type.shape.dim[0].dim_param = "batch"
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer}
    fmt = format_by_name("e2m1")
    integers = numerics.decode(numerics.unpack(stored["codes"], 32, 4), fmt)
    weight = numerics.dequantize(integers, stored["weight_scale"], 32)
    floating = onnx.parser.parse_model(FLOAT_MODEL)
    for name, value in (("weight", weight), ("bias", stored["bias"])):
        floating.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    paths = tmp_path / "transformer" / "model.onnx", tmp_path / "float.onnx"
    paths[0].parent.mkdir()
    for model, path in zip((quantized, floating), paths, strict=True):
        onnx.save(model, path)
    return paths


def test_step_against_the_float_model(models: tuple[Path, Path]) -> None:
    case = StepCase(*models, batch=6, tokens=1)
    isa = supported_isas()[0]
    everyone = backends("step", [isa], ["ort-float32", "ort-int8", "ort-functions"])
    report = run_case(case, everyone, "ort-float32", SMALL, SilentReporter())
    found = {outcome.name: outcome.sqnr_db for outcome in report.outcomes}
    assert report.absent == {}
    assert found["ort-float32"] is None, "it is the reference"
    assert found["ort-int8"] is not None
    assert 25 < found["ort-int8"] < 90, "not in float"
    own, body = found[f"fp4dit {isa}"], found["ort-functions"]
    assert own is not None
    assert own == pytest.approx(body, abs=0.01)
    assert 25 < own < 60


def test_step_without_a_float_model(models: tuple[Path, Path]) -> None:
    case = StepCase(models[0], None, batch=2, tokens=1)
    everyone = backends("step", [supported_isas()[-1]], ["ort-float32", "ort-int8"])
    report = run_case(case, everyone, "ort-float32", SMALL, SilentReporter())
    reason = "needs the float model: give it with --float"
    assert report.absent == {"ort-float32": reason, "ort-int8": reason}
    (outcome,) = report.outcomes
    assert (outcome.ratio, outcome.sqnr_db, outcome.gops) == (None, None, None)


def test_step_inputs(models: tuple[Path, Path], tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[batch, 4, height, width] hidden_states, float[batch] timestep,
       int64[batch, text] mask, int64[batch] style)
      => (float[batch, 4, height, width] y) { y = Identity (hidden_states) }"""
    path = tmp_path / "inputs.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(UsageError, match="hidden_states: dimension height has no known size"):
        _ = StepCase(path, None, batch=3, tokens=5).feed
    path.with_name("config.json").write_text('{"sample_size": 6, "in_channels": 4}')
    feed = StepCase(path, None, batch=3, tokens=5).feed
    assert {name: value.shape for name, value in feed.items()} == {
        "hidden_states": (3, 4, 6, 6),
        "timestep": (3,),
        "mask": (3, 5),
        "style": (3,),
    }
    assert set(feed["timestep"]) == {500.0}
    assert feed["mask"].dtype == np.int64
    assert feed["mask"].all()
    assert not feed["style"].any()
    with pytest.raises(UsageError, match="takes x; the bundle's transformer takes hidden_states"):
        StepCase(path, models[1], batch=1, tokens=1)
    onnx.save(onnx.parser.parse_model(text.replace("text", "words")), path)
    with pytest.raises(UsageError, match="mask: dimension words has no known size"):
        _ = StepCase(path, None, batch=1, tokens=1).feed


SPREAD = {"median", "low", "high", "least", "most"}
SHORT = ["--rounds", "2", "--threads", "1", "--peer", "ort-float32", "--peer", "openvino-u4"]


def test_command_prints_json(run: Any) -> None:
    isa = supported_isas()[0]
    code, out, _ = run("bench", "--shape", "4x130x8", "--isa", isa, "--json", *SHORT)
    assert code == 0
    content = json.loads(out)
    assert content["machine"]["threads"] == 1
    assert content["machine"]["limits"] == {isa: dict.fromkeys(("int8", "int16", "float"), 100.0)}
    assert {"python", "onnxruntime", "numpy"} <= set(content["machine"]["versions"])
    (case,) = content["cases"]
    assert (case["kind"], case["name"], case["baseline"]) == ("linear", "4x130x8", "ort-float32")
    assert [one["name"] for one in case["outcomes"]] == [f"fp4dit {isa}", "ort-float32"]
    assert set(case["absent"]) == {"openvino-u4"}, "not installed, or no groups of 128 in 130"
    keys = {
        "name",
        "about",
        "isa",
        "threads",
        "spinning",
        "seconds",
        "rounds",
        "gops",
        "limit_share",
        "ratio",
        "sqnr_db",
    }
    for outcome in case["outcomes"]:
        assert set(outcome) == keys
        assert set(outcome["seconds"]) == set(outcome["ratio"]) == SPREAD


def test_settings_are_rows_of_a_table(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number of threads with spinning on and off, against the baseline of its own."""
    entries: list[tuple[int, str]] = []
    start = sessions.started

    def started(source: Any, options: Any, placed: Any) -> Any:
        spinning = options.get_session_config_entry("session.intra_op.allow_spinning")
        entries.append((options.intra_op_num_threads, spinning))
        return start(source, options, placed)

    evicted: list[None] = []
    monkeypatch.setattr(sessions, "started", started)
    monkeypatch.setattr("fp4dit_onnx.benchmark.run.evictor", lambda: lambda: evicted.append(None))
    isa = supported_isas()[0]
    given = ("--shape", "4x32x8", "--isa", isa, "--peer", "ort-float32", "--rounds", "2", "--cold")
    code, out, _ = run("bench", *given, "--threads", "1,2", "--spinning", "both", "--json")
    assert code == 0
    (case,) = json.loads(out)["cases"]
    found = [(one["name"], one["threads"], one["spinning"]) for one in case["outcomes"]]
    wanted = [(count, spins) for count in (1, 2) for spins in (True, False)]
    names = (f"fp4dit {isa}", "ort-float32")
    assert found == [(name, *setting) for setting in wanted for name in names]
    assert entries == [(count, str(int(spins))) for count, spins in wanted for _ in names]
    assert len(evicted) == 2 * len(found)
    base = [one["ratio"]["median"] for one in case["outcomes"] if one["name"] == "ort-float32"]
    assert base == [1.0] * 4


def test_command_prints_tables(run: Any) -> None:
    code, out, err = run("bench", "--shape", "4x130x8", "--isa", supported_isas()[-1], *SHORT)
    assert code == 0
    for words in (
        "Limits",
        "linear 4x130x8",
        "x ort-float32",
        "absent: openvino-u4: ",
        "rotating",
    ):
        assert words in out
    assert "timing" in err


def test_command_with_a_bundle(
    run: Any, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, usual = models[0].parents[1], EMPTY.sampling
    manifest = replace(EMPTY, sampling=replace(usual, max_sequence_length=7))
    monkeypatch.setattr(requests.Bundle, "open", lambda path: Bundle(path, manifest))
    code, out, _ = run("bench", folder, "--float", models[1], "--batch", "3", "--json", *SHORT)
    assert code == 0
    (case,) = json.loads(out)["cases"]
    assert (case["kind"], case["name"]) == ("step", "batch 3, text 7")
    names = [outcome["name"] for outcome in case["outcomes"]]
    assert names == [*(f"fp4dit {isa}" for isa in supported_isas()), "ort-float32"]


def test_command_fails_where_nobody_runs(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "why_absent", lambda self: "gone")
    code, out, _ = run("bench", "--shape", "1x8x8", "--json", *SHORT)
    assert code == 1
    assert json.loads(out)["cases"][0]["outcomes"] == []


def test_dry_run_lists_and_measures_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fp4dit_onnx.benchmark.run_case", None)
    monkeypatch.setattr(
        Backend, "why_absent", lambda self: "gone" if self.package == "torch" else None
    )
    code, out, _ = run("bench", "--dry-run", "--json", "--attention", "1x8x2x16")
    assert code == 0
    (plan,) = json.loads(out)["cases"]
    assert plan["name"] == "1x8x2x16"
    assert set(plan["absent"]) == {"torch-float32", "torch-bf16"}
    assert "ort-mha" in plan["runs"]
    code, out, _ = run("bench", "--dry-run")
    assert code == 0
    assert out.count("ort-matmulnbits") == len(DEFAULT_SHAPES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shape", "12x3"], ("'12x3'", "MxKxN", "1024x1152x4608")),
        (["--attention", "1x2x3"], ("'1x2x3'", "BxSxHxD")),
        (["--peer", "nobody"], ("peer 'nobody'", "ort-float32", "openvino-bf16", "ort-mha")),
        (["--isa", "sparc"], ("'sparc'", "scalar")),
        (["--bits", "w5a6"], ("w5a6", "expected")),
        (["--weight-format", "e9m9"], ("e9m9", "e2m1")),
        (["--group-size", "7"], ("group size 7", "128")),
        (["--float", "x.onnx"], ("--float", "bundle")),
        (["--threads", "two"], ("'two'", "such as 1,2,4")),
        (["--threads", "0"], ("threads 0", "usable cores")),
        (["--threads", "1,99999"], ("threads 99999: expected 1 to",)),
        (["--spinning", "often"], ("'often'", "both")),
        (["/nowhere"], ("/nowhere not found", "check the path")),
    ],
)
def test_bad_input_is_one_line(run: Any, arguments: list[str], words: tuple[str, ...]) -> None:
    run("bench", *arguments).refuses(*words)
