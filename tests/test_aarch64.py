"""aarch64 under qemu: the C++ tests on each kind of processor. `tools/check_aarch64.py` does more."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aarch64_instructions as counting
import check_aarch64 as tool
import emulation
import numpy as np
import onnx
import pytest

from fp4dit_onnx.targets.tiny_model import tiny_linear

TOOLS = Path(__file__).resolve().parents[1] / "tools"
NEEDED = ("aarch64-linux-gnu-g++", "qemu-aarch64", "cmake")
BEST = {"cortex-a53": "neon", "neoverse-n1": "neon_dotprod", "max": "neon_i8mm"}

ABSENT = [name for name in NEEDED if shutil.which(name) is None]
emulated = pytest.mark.skipif(
    bool(ABSENT) or platform.machine() != "x86_64",
    reason=f"needs x86-64 and {', '.join(NEEDED)}; absent: {', '.join(ABSENT) or 'none'}",
)


def run_tool(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "check_aarch64.py"), *options]
    env = {**os.environ, **environment}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, timeout=300
    )


@emulated
def test_native_suite_on_every_kind_of_processor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary.json"
    result = run_tool(
        "--only", "suite", "--work", str(tmp_path / "work"), "--json", str(summary), "--jobs", "2"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(summary.read_text())
    assert found["ok"]
    suites = {row["name"]: row["detail"] for row in found["checks"] if "tests" in row["name"]}
    best = {name.split(", ")[1]: detail.split(", ")[0] for name, detail in suites.items()}
    assert best == BEST
    with capsys.disabled():
        print("\n  aarch64: " + "; ".join(suites.values()))


def test_unknown_check_is_refused() -> None:
    result = run_tool("--only", "suite,speed")
    assert result.returncode == 2
    assert (
        "--only speed: expected among suite, sanitizers, nodes, models, image, x86"
        in result.stderr
    )


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="x86-64")
def test_missing_programs_are_named(tmp_path: Path) -> None:
    result = run_tool("--only", "suite", PATH=str(tmp_path))
    assert result.returncode == 2
    assert "qemu-aarch64 not found: install Debian's qemu-user" in result.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a: a, None),
        (lambda a: -a, "q differs in 3 of 3 values"),
        (lambda a: a * np.float32(1 + 2**-23), "q differs in 2 of 3 values"),
        (lambda a: np.where(a == 0, np.float32(-0.0), a), "q differs in 1 of 3 values"),
        (lambda a: a.astype(np.float64), r"q is float64 (3,), expected float32 (3,)"),
        (lambda a: a[:, None], "q is float32 (3, 1), expected float32 (3,)"),
    ],
)
def test_comparator(change: object, expected: str | None) -> None:
    wanted = np.array([0.0, 1.0, -2.5], np.float32)
    assert callable(change)
    found = change(wanted)
    assert tool.first_difference(["x", "q"], [wanted, wanted], [wanted, found]) == expected


def test_comparator_tells_nan_from_numbers() -> None:
    wanted = [np.array([np.nan, 1.0], np.float32)]
    assert tool.first_difference(["q"], wanted, wanted) is None
    found = [np.array([1.0, 1.0], np.float32)]
    assert tool.first_difference(["q"], wanted, found) == "q differs in 1 of 2 values"


RUNNER = """
import sys
from pathlib import Path
import numpy as np

print("isa neon", "input 0 x", "output 0 y", "output 1 z", "ready", sep="\\n", flush=True)
for line in sys.stdin:
    folder = Path(line.rstrip())
    x = np.load(folder / "input_0.npy")
    np.save(folder / "output_0.npy", x + 1)
    np.save(folder / "output_1.npy", x + 2)
    print("done", flush=True)
print('counters {"FpLinear/int8/neon": 3}')
"""


def test_an_emulated_session_is_what_a_pipeline_takes(tmp_path: Path) -> None:
    """With a stand-in of the runner: names, order of outputs and counters."""
    (tmp_path / "runner.py").write_text(RUNNER)
    build = SimpleNamespace(runner=tmp_path / "runner.py", library=tmp_path / "library")
    machine: Any = SimpleNamespace(emulator=[sys.executable], build=build)
    onnx.save_model(tiny_linear(), tmp_path / "model.onnx")
    session = emulation.EmulatedSession(
        machine, tmp_path, tmp_path / "model.onnx", library=False, folder=tmp_path / "tensors"
    )
    recording = tool.Recording(session)
    for made in (session, recording):
        assert [(i.name, i.shape) for i in made.get_inputs()] == [("x", ["m", 32])]
        assert [o.name for o in made.get_outputs()] == ["y", "z"]
        x = np.ones((2, 32), np.float32)
        z, y = made.run(["z", "y"], {"x": x})
        assert np.array_equal(y, x + 1)
        assert np.array_equal(z, x + 2)
    session.close()
    assert (session.isa, session.counters) == ("neon", {"FpLinear/int8/neon": 3})


WORDS = {
    "smmla": (0x4E81A420,),
    "sdot": (0x4E819420, 0x4F81E020),  # by a vector, by an element
    "smlal": (0x0E618020, 0x4E618020, 0x0F412020),
    "fmla": (0x4E21CC20, 0x4FA11020),
}
"""As GNU as assembles them."""
OTHERS = (0x4EA18420, 0x3DC00020, 0x6F00E400, 0x91001021)  # add, ldr, movi, add of x


def test_products_are_told_from_other_instructions() -> None:
    def kinds(word: int) -> list[str]:
        pairs = counting.KINDS.items()
        return [name for name, masks in pairs for m, v in masks if word & m == v]

    for name, words in WORDS.items():
        assert all(kinds(word) == [name] for word in words), name
    assert not any(kinds(word) for word in OTHERS)


def test_cycles_are_bound_by_what_there_is_most_of() -> None:
    assert counting.Counts(100, {"sdot": 20, "smlal": 0}).cycles == 25
    assert counting.Counts(100, {"sdot": 60, "smlal": 0}).cycles == 30
    assert counting.Counts(100, {"sdot": 20, "smlal": 30}).cycles == 40  # one a cycle


@emulated
def test_instructions_of_a_run_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    m, k, n = 60, 256, 256
    words = ["--shape", f"{m}x{k}x{n}", "--cpu", "neoverse-n1", "--work", str(tmp_path)]
    assert counting.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    rows = {name: (float(all_), float(products)) for name, all_, products, *_ in cells[2:]}
    needed = m * k * n / 16 / 1e6
    for name in ("ours, W4A6", "ort-int8"):
        total, products = rows[name]
        assert needed <= products < 1.3 * needed, name
        assert products < total


def test_sizes_are_refused_before_anything_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert counting.main(["--shape", "3x4"]) == 2
    assert "expected MxKxN" in capsys.readouterr().err
