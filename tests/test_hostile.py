"""Altered files and requests: hundreds of seeded ones, and what earlier thousands found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")

from hostile import text_faults
from hostile_files import CANARY
from hostile_server import request_faults

from fp4dit_onnx.bundle.names import CODES
from fp4dit_onnx.bundle.probe import exposed, load_graph
from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.families.table import largest_side
from fp4dit_onnx.runtime.sizes import pixels_a_latent

TOOL = Path(__file__).resolve().parents[1] / "tools" / "hostile.py"


@pytest.mark.skipif(sys.platform != "linux", reason="limits and sessions of Linux's processes")
def test_hundreds_of_altered_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, TOOL, "--cases", "250", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "250 cases in" in done.stdout
    assert "0 with faults" in done.stdout


@pytest.mark.parametrize(
    ("out", "err", "code", "fault"),
    [
        ("", "Traceback (most recent call last)\nKeyError: 'a'", 70, "exit code 70"),
        ("", "Traceback (most recent call last)\nerror: x", 1, "a traceback"),
        ("", "error: a\nerror: b", 2, "2 lines of error"),
        ("", "error: a\nand more", 2, "1 lines of error"),
        ("", "", 2, "silent"),
        ("", "", 1, "fails without a word"),
        ("table", "error: a", 0, "an error and exit code 0"),
        ("a\x1b[31mb", "", 0, "control characters"),
        (CANARY, "", 0, "a file outside"),
        ("", "", None, "ran out of time"),
        ("", "", -11, "exit code -11"),
        ("", "tracing: 3 done\nerror: a", 2, ""),
        ("table", "", 1, ""),
    ],
)
def test_what_counts_as_a_fault(out: str, err: str, code: int | None, fault: str) -> None:
    found = list(text_faults(out, err, code))
    assert any(text.startswith(fault) for text in found) if fault else not found


@pytest.mark.parametrize(
    ("answer", "named", "fault"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "evil.example", "an answer to the host"),
        (b"HTTP/1.1 500 Internal\r\n\r\n", "", "status 500"),
        (CANARY.encode(), "", "no answer of HTTP"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "evil.example", ""),
        (b"", "", ""),
    ],
)
def test_what_counts_as_a_wrong_answer(answer: bytes, named: str, fault: str) -> None:
    found = list(request_faults(answer, named))
    assert any(text.startswith(fault) for text in found) if fault else not found


def lose_attribute(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "FpLinear")
    kept = [a for a in node.attribute if a.name != "weight_format"]
    del node.attribute[:]
    node.attribute.extend(kept)


def lose_input(model: onnx.ModelProto) -> None:
    del next(n for n in model.graph.node if n.op_type == "FpLinear").input[-1]


def flatten_codes(model: onnx.ModelProto) -> None:
    next(t for t in model.graph.initializer if t.name.endswith(CODES)).dims[:] = [-1]


def rename_operator(model: onnx.ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "FpLinear").op_type = "FpNothing"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_attribute, "FpLinear, lacks the attribute 'weight_format'"),
        (lose_input, "FpLinear, has 4 inputs and 1 outputs: expected 5 and 1"),
        (flatten_codes, r"of FpLinear has shape \[-1\]: expected two sizes"),
        (rename_operator, "is of operator 'FpNothing': expected one of FpQuantize"),
        (lambda model: model.graph.ClearField("node"), "is not an ONNX model: expected"),
        (lambda model: setattr(model.graph.initializer[0], "data_type", 99), "element type 99 is"),
    ],
)
def test_a_graph_whose_operators_are_not_ours(
    demo_bundle: Path,
    tmp_path: Path,
    damage: Callable[[onnx.ModelProto], Any],
    message: str,
) -> None:
    model = onnx.load(demo_bundle / "transformer/model.onnx", load_external_data=False)
    damage(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=message):
        load_graph(path)


def test_bytes_that_are_no_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"[" * 1000)
    with pytest.raises(BundleError, match="is not an ONNX model"):
        load_graph(tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="no readable ONNX model"):
        load_graph(tmp_path / "absent.onnx")


def test_a_graph_with_a_function_twice(demo_bundle: Path) -> None:
    model = onnx.load(demo_bundle / "transformer/model.onnx", load_external_data=False)
    model.functions.append(model.functions[0])
    with pytest.raises(BundleError, match="the model contradicts itself"):
        exposed(model)


@pytest.mark.parametrize("levels", [None, 1, "four", {}, [], [1] * 1000])
def test_levels_of_a_vae(levels: object) -> None:
    with pytest.raises(UsageError, match="the VAE's block_out_channels is"):
        pixels_a_latent({"block_out_channels": levels})


@pytest.mark.parametrize("size", [0, -1, True, "eight", [8], 2.5])
def test_stored_positions_that_are_no_number(size: object) -> None:
    config = json.loads('{"_class_name": "SD3Transformer2DModel", "patch_size": 2}')
    with pytest.raises(UsageError, match="pos_embed_max_size of the transformer is"):
        largest_side(config | {"pos_embed_max_size": size})


def test_onnx_runtime_writes_nothing_home(tmp_path: Path) -> None:
    """Its version 1.32 has telemetry, and writes an id for it where it is imported."""
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    code = "import fp4dit_onnx.runtime, onnxruntime"
    subprocess.run([sys.executable, "-c", code], env=home, cwd=tmp_path, check=True)
    assert list(tmp_path.rglob("*")) == []
