"""The custom-op library: every instruction set it has, and what it says when it cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fp4dit_onnx.runtime import library as module
from fp4dit_onnx.runtime.library import Library, LibraryError, dot_product_limit, library_path

# The program that checks the instruction set of the environment.
PROGRAM = Path(__file__).with_name("test_custom_ops.py")
KINDS = ("int8", "int16", "float")


@pytest.mark.parametrize("isa", Library().isas)
def test_bits_of_every_format(isa: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-P", str(PROGRAM)]
    env = {**os.environ, "FP4DIT_ISA": isa, "PYTHONPATH": str(PROGRAM.parent / "support")}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    counters = json.loads(result.stdout.splitlines()[-1])
    ran = [key.split("/") for key in counters]
    # Where an instruction set has no kernel of its own, a lower one's runs; never a higher one's.
    allowed = Library().isas[Library().isas.index(isa) :]
    assert {used for _, _, used in ran} <= set(allowed), f"asked for {isa}, ran {counters}"
    assert f"FpLinear/int8/{isa}" in counters, f"asked for {isa}, ran {counters}"
    kinds = {(op, kind) for op in ("FpLinear", "FpQuantize") for kind in KINDS}
    assert kinds <= {(op, kind) for op, kind, _ in ran}, f"ran {counters}"
    with capsys.disabled():
        print(f"\n  custom ops: {isa} ran")


def test_unknown_isa_is_refused() -> None:
    code = (
        "import onnxruntime as ort; from fp4dit_onnx.runtime.library import library_path; "
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
    with pytest.raises(LibraryError, match="is not a custom-op library that can be used"):
        Library(text)


def test_library_says_what_it_is() -> None:
    library = Library()
    assert library.isa in library.isas
    assert library.isas[-1] == "scalar"
    assert library.version.count(".") == 2


def test_selecting_an_isa() -> None:
    library = Library()
    before = library.isa
    try:
        for isa in library.isas:
            library.select_isa(isa)
            assert library.isa == isa
        with pytest.raises(
            LibraryError, match=f"'sparc': expected one of {', '.join(library.isas)}"
        ):
            library.select_isa("sparc")
        assert library.isa == library.isas[-1]  # a refusal changes nothing
    finally:
        library.select_isa(None)
    assert library.isa == before


def test_limit_counts_products() -> None:
    library = Library()
    isa = library.isas[0]
    assert library.peak(isa, "int8", 20) == 2 * library.peak(isa, "int8", 10)
    assert library.peak("scalar", "int8", 10) == 0
    assert library.peak("sparc", "int8", 10) == 0
    assert dot_product_limit("scalar", "int8", 1) is None


def test_a_limit_is_the_best_of_runs_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: runs of 0.02, 0.01, 0.02, ... s, each of 10^6 products."""
    now, runs = [100.0], []

    class Peak:
        def peak(self, isa: str, kind: str, rounds: int) -> float:
            if rounds > 1:
                runs.append(rounds)
                now[0] += 0.01 if len(runs) == 2 else 0.02
            return 1e6

    monkeypatch.setattr(module, "Library", Peak)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert dot_product_limit("any", "int8", 1) == pytest.approx(2 * 1e6 / 0.01 / 1e9)
    assert now[0] - 100 >= module.LIMIT_SECONDS
    assert set(runs) == {module.LIMIT_ROUNDS}
