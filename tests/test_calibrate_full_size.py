"""The tool that calibrates models of official size, on the smallest one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")

import calibrate_full_size
import torch


class Memory:
    """Statistics of a device, whose peak is since they were last reset."""

    peaks = iter((3 * 10**9, 10**9, 2 * 10**9))

    def __init__(self) -> None:
        self.resets: list[Any] = []

    def reset_peak_memory_stats(self, device: str | None) -> None:
        """Torch's."""
        self.resets.append(device)

    def max_memory_allocated(self, device: str | None) -> int:
        """Torch's."""
        return next(self.peaks)


def test_stages_add_up_and_keep_their_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    monkeypatch.setattr(torch, "cuda", memory)
    stages = calibrate_full_size.Stages("cuda:1")
    for name in ("sampling", "calibrating", "sampling"):
        with stages.stage(name, 2) as advance:
            advance(1, "block")
    assert memory.resets == ["cuda:1"] * 3
    assert {row.name: row.device for row in stages.rows.values()} == {
        "sampling": 3 * 10**9,
        "calibrating": 10**9,
    }
    lines = calibrate_full_size.table([*stages.rows.values()]).splitlines()
    assert lines[2].startswith("| sampling | 0.0")
    assert "| 3.00 |" in lines[2]


def test_a_twin_is_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--twin --device cpu --preset fast --iterations 1 --samples 4 --steps 2"
    given = ["--folder", str(tmp_path), *options.split(), "--calibration-prompts", "2"]
    assert calibrate_full_size.main(given) == 0
    out = capsys.readouterr().out
    assert "pixart-alpha-512.twin, fp4dit --preset fast --precision float32, on cpu" in out
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
    assert rows[0] == "stage"
    assert rows[-1] == "in all"
    assert {"encoding the prompts", "sampling with the float model", "calibrating"} <= {*rows}
    assert "extrapolated" not in out
    stages = calibrate_full_size.Stages("cpu")
    stages.note("blocks.3: error 0.7 of nearest rounding, 20 optimizer steps")
    assert list(stages.units) == ["blocks.3"]
    assert not list(tmp_path.iterdir())  # without --keep
    assert calibrate_full_size.main([*given, "--device", "tpu"]) == 2


def test_blocks_that_are_not_trained_are_extrapolated() -> None:
    units = {
        "blocks.0": 70.0,
        "blocks.1": 10.0,
        "blocks.10": 10.0,
        "single.0": 5.0,
        "proj_out": 1.0,
    }
    told = calibrate_full_size.extrapolated(units, "blocks.1.* proj_out*", 100.0)
    assert told.startswith("blocks: 10 s trained, 40 s to nearest, 3 of them; all trained")
    told = calibrate_full_size.extrapolated(units, "blocks.0.*", 3600.0 - 2 * 60)
    assert told.endswith("all trained, extrapolated: 1.0 hours")
