"""The script for a rented GPU and the demo for one, on a machine without: dry runs and refusals."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_check
import gpu_demo
import numpy as np
import onnx
import pytest

from fp4dit_onnx.runtime.providers import place
from fp4dit_onnx.runtime.session import started

SCRIPT = Path(gpu_check.__file__).with_name("gpu_check.sh")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs bash")


def test_every_kernel_is_compared_with_its_definition(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kept in (("ACTIVATIONS", ("e2m3",)), ("WEIGHTS", ("e3m0",)), ("GROUPS", (32,))):
        monkeypatch.setattr(gpu_check, name, kept)
    assert gpu_check.main(["bits", "--device", "cpu", "--few"]) == 0
    assert "3 cases on cpu, 0 differ" in capsys.readouterr().out


def test_a_kernel_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last bit of one value."""
    _, model, feed = next(gpu_check.cases(few=True))

    def wrong(*arguments: Any) -> Any:
        real = started(*arguments)

        def run(names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
            outputs = dict(zip(names, real.run(names, given), strict=True))
            outputs["y"].flat[-1] = np.nextafter(outputs["y"].flat[-1], np.float32(9))
            return list(outputs.values())

        return SimpleNamespace(run=run)

    monkeypatch.setattr(gpu_check, "started", wrong)
    (line,) = gpu_check.differing(onnx.load_from_string(model), feed, place("cpu"))
    assert line.startswith("FpLinear: ")


def test_a_dry_run_of_all_steps(tmp_path: Path) -> None:
    """The bundle is none, so the steps that need one fail, and no other is kept from running."""
    given = ["bash", str(SCRIPT), "--dry-run", str(tmp_path / "nowhere"), str(tmp_path / "out")]
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$*" in *nowhere*) echo no bundle; exit 2;; esac\n')
    fake.chmod(0o755)
    done = subprocess.run(
        given, env={"PATH": "/usr/bin:/bin", "PYTHON": str(fake)}, capture_output=True, check=False
    )
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    lines = {line[11:25].strip(): line[:10].strip() for line in summary}
    assert done.returncode == 3, done.stderr
    failed = [name for name, word in lines.items() if word == "FAILED"]
    assert failed == ["verify", "kernels", "bodies"]
    assert {lines[name] for name in ("doctor", "bits", "torch", "operators")} == {"ok"}
    if shutil.which("compute-sanitizer") is None:
        assert lines["memcheck"] == lines["racecheck"] == "not run"


def test_the_limits_of_the_steps_are_nine_minutes() -> None:
    limits = [
        int(line.split()[2])
        for line in SCRIPT.read_text().splitlines()
        if line.startswith("step ")
    ]
    assert len(limits) == 10
    assert sum(limits) <= 540


def test_the_script_asks_for_its_arguments() -> None:
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"usage: ")


def test_the_demo_installs_nothing_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fp4dit_onnx.system.nvidia.DRIVER", str(tmp_path / "libabsent.so"))
    monkeypatch.setattr(gpu_demo.subprocess, "run", None)
    assert gpu_demo.main([str(tmp_path)]) == 2
    assert "there is no NVIDIA driver" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
