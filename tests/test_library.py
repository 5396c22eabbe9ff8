"""The custom-op library: every instruction set it has, and what it says when it cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fp4dit_onnx.library import Library, LibraryError, library_path

# The program that checks one instruction set, which a process chooses once.
PROGRAM = Path(__file__).with_name("test_custom_ops.py")
KINDS = ("int8", "int16", "float")


@pytest.mark.parametrize("isa", Library().isas)
def test_bits_of_every_format(isa: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-P", str(PROGRAM)]
    result = subprocess.run(
        command, env={**os.environ, "FP4DIT_ISA": isa}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    counters = json.loads(result.stdout.splitlines()[-1])
    ran = {key for key in counters if key.endswith(f"/{isa}")}
    kinds = {f"{op}/{kind}/{isa}" for op in ("FpLinear", "FpQuantize") for kind in KINDS}
    assert kinds <= ran, f"asked for {isa}, ran {counters}"
    with capsys.disabled():
        print(f"\n  custom ops: {isa} ran")


def test_unknown_isa_is_refused() -> None:
    code = (
        "import onnxruntime as ort; from fp4dit_onnx.library import library_path; "
        "ort.SessionOptions().register_custom_ops_library(str(library_path()))"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "FP4DIT_ISA": "sparc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "FP4DIT_ISA is 'sparc'" in result.stderr
    assert "expected one of " + ",".join(Library().isas) in result.stderr


def test_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FP4DIT_LIBRARY", str(tmp_path / "nowhere.so"))
    with pytest.raises(LibraryError, match=r"FP4DIT_LIBRARY is '.*nowhere\.so'.*correct it"):
        library_path()
    text = tmp_path / "text.so"
    text.write_text("no library")
    with pytest.raises(LibraryError, match="no custom-op library that can be used"):
        Library(text)


def test_library_says_what_it_is() -> None:
    library = Library()
    assert library.isa in library.isas
    assert library.isas[-1] == "scalar"
    assert library.version.count(".") == 2
