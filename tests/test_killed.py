"""kill -9 during a calibrated export: the same command goes on and writes the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from random_pipeline import make as make_pipeline

from fp4dit_onnx.bundle.bundle import MANIFEST
from fp4dit_onnx.bundle.manifest import read_manifest
from fp4dit_onnx.calibration import recording
from fp4dit_onnx.calibration.applying import Alternatives
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.exporting.export import ExportRequest, export

STEPS, PROMPTS, BATCHES = 2, 24, 3
KILLED = """
import importlib, json, os, signal, sys
from fp4dit_onnx import cli

report, last, places, *command = sys.argv[1:]
places = places.split()
counts = dict.fromkeys(places, 0)

def count(place):
    module, _, path = place.partition(":")
    owner = importlib.import_module(f"fp4dit_onnx.calibration.{module}")
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    right = getattr(owner, name)
    def counted(*given, **named):
        counts[place] += 1
        if place == places[0] and counts[place] == int(last):
            with open(report, "w") as file:
                json.dump(counts, file)
            os.kill(os.getpid(), signal.SIGKILL)
        return right(*given, **named)
    setattr(owner, name, counted)

for place in places:
    count(place)
cli.main(command)
"""
"""Counts calls of functions, and dies at a call of the first."""
SAMPLED, PROBED, ROUNDED = PLACES = (
    "capture:CallRecorder._keep",
    "recording:step_importance",
    "gptq:compensated",
)


def killed(report: Path, at: str, last: int, arguments: list[str]) -> dict[str, int]:
    """Runs an export that is killed at call number `last` of `at`; calls of each place until then."""
    places = [at, *(place for place in PLACES if place != at)]
    program = [sys.executable, "-P", "-c", KILLED, str(report), str(last), " ".join(places)]
    result = subprocess.run(
        [*program, "export", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    found: dict[str, int] = json.loads(report.read_text())
    return found


def files(bundle: Path) -> dict[str, bytes]:
    """All but the manifest, which has times and memory."""
    paths = (p for p in bundle.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(path.relative_to(bundle)): path.read_bytes() for path in paths}


def test_an_export_killed_at_two_places_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pipeline("pixart-alpha-256", tmp_path / "model", twin=True)
    common: dict[str, Any] = {
        "model": tmp_path / "model",
        "method": "tuned",
        "components": "transformer",
        "steps": STEPS,
        "calibration_prompts": PROMPTS,
        "samples": 16,
        "report": False,
    }
    units: list[str] = []
    finish = Work.finish

    def noted(self: Work, unit: str, *rest: Any) -> None:
        units.append(unit)
        finish(self, unit, *rest)

    monkeypatch.setattr(Work, "finish", noted)
    whole = export(ExportRequest(output=tmp_path / "whole", **common))
    monkeypatch.setattr(Work, "finish", finish)
    report = tmp_path / "report.json"
    output, work = tmp_path / "bundle", tmp_path / "bundle.calibration"
    arguments = [str(common["model"]), "-o", str(output), "--no-report"]
    for name in ("method", "components", "steps", "calibration_prompts", "samples"):
        arguments += [f"--{name.replace('_', '-')}", str(common[name])]

    in_second_batch = STEPS + 2
    first = killed(report, SAMPLED, in_second_batch, arguments)
    assert (first[PROBED], first[ROUNDED]) == (1, 0)
    assert not (work / "recorded.pt").exists()

    second = killed(report, ROUNDED, 40, arguments)
    assert (second[PROBED], second[SAMPLED]) == (0, (BATCHES - 1) * STEPS)
    finished = {path.name for path in (work / "units").iterdir()}
    assert finished
    assert not (work / "compared.pt").exists()
    made: list[int] = []
    best = Alternatives.best

    def counted(self: Alternatives, drafts: Any) -> Any:
        made.append(len(drafts))
        return best(self, drafts)

    def again(*_: Any) -> Any:
        raise AssertionError("the sampler ran before")

    monkeypatch.setattr(recording, "record_batch", again)
    monkeypatch.setattr(Alternatives, "best", counted)
    result = export(ExportRequest(output=output, **common))
    assert files(output) == files(whole.bundle)
    manifests = [read_manifest(folder / MANIFEST) for folder in (output, whole.bundle)]
    assert manifests[0].files == manifests[1].files
    assert manifests[0].choices == manifests[1].choices
    assert result.manifest.layers == whole.manifest.layers
    assert len(made) == len(units) - len(finished)
    assert not work.exists()
