"""The C++ tests and a short fuzz run, built with address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fp4dit_onnx.library import Library

SOURCE = Path(__file__).resolve().parents[1] / "custom_ops"

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("c++") is None or shutil.which("cmake") is None,
    reason="needs cmake and a compiler with sanitizers",
)


def run(command: list[str], **environment: str) -> str:
    """Output of a command that must succeed."""
    strict = {"UBSAN_OPTIONS": "print_stacktrace=1", "ASAN_OPTIONS": "detect_leaks=1"}
    env = {**os.environ, **strict, **environment}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    options = ["-DFP4DIT_BUILD_TESTS=ON", "-DFP4DIT_WERROR=ON", "-DCMAKE_BUILD_TYPE=None"]
    options += ["-DFP4DIT_SANITIZE=address,undefined", "-DCMAKE_CXX_FLAGS=-O1 -g1"]
    run(["cmake", "-S", str(SOURCE), "-B", str(folder), *options])
    targets = ["--target", "fp4dit_tests", "fp4dit_fuzz"]
    run(["cmake", "--build", str(folder), "--parallel", "2", *targets])
    return folder


def test_unit_tests(build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = Library().isas[0]
    output = run([str(build / "tests" / "fp4dit_tests"), best])
    checks = re.search(r"(\d+) checks, 0 failures", output)
    assert checks is not None, output
    assert int(checks[1]) > 100_000, output
    for isa in Library().isas:
        assert f"{isa}: ran" in output
    with capsys.disabled():
        print("\n  native: " + "; ".join(output.splitlines()))


def test_an_isa_that_did_not_run_fails(build: Path) -> None:
    with pytest.raises(AssertionError, match="sparc: asked for, and did not run"):
        run([str(build / "tests" / "fp4dit_tests"), "sparc"])


@pytest.mark.parametrize("isa", Library().isas)
def test_fuzz(build: Path, isa: str) -> None:
    output = run([str(build / "fuzz" / "fp4dit_fuzz"), "1", "4000"], FP4DIT_ISA=isa)
    assert "4000 nodes" in output
