"""The installation check: every finding has a cause and a cure, and no check can break it."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
from command_line import Run

from fp4dit_onnx import doctor


def test_doctor_names_cause_and_cure(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    broken = doctor.Finding("engine", False, True, "nothing", "it is absent", "install it")
    absent = doctor.Finding("radio", False, False, "nothing", "not bought", "buy one")
    monkeypatch.setattr(doctor, "CHECKS", {"engine": lambda _: broken, "radio": lambda _: absent})
    code, printed, _ = run("doctor")
    assert code == 1
    assert "engine: it is absent" in printed
    assert "cure: install it" in printed
    monkeypatch.setattr(doctor, "CHECKS", {"radio": lambda _: absent})
    code, printed, _ = run("doctor", "--json")
    assert (code, json.loads(printed)["ok"]) == (0, True)


def test_doctor_survives_a_check_that_breaks() -> None:
    def breaks(name: str) -> doctor.Finding:
        raise ZeroDivisionError

    finding = doctor._run("odd", breaks)
    assert not finding.ok
    assert "ZeroDivisionError" in finding.cause


@pytest.mark.parametrize(
    ("installed", "cause"),
    [
        ({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}, "several flavours"),
        ({"onnxruntime": "1.17.3"}, "opset 21"),
    ],
)
def test_doctor_knows_the_flavours_of_onnxruntime(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], cause: str
) -> None:
    monkeypatch.setattr(doctor, "_version", installed.get)
    monkeypatch.setattr(onnxruntime, "__version__", installed["onnxruntime"])
    finding = doctor.CHECKS["onnxruntime"]("onnxruntime")
    assert not finding.ok
    assert cause in finding.cause
    assert "fp4dit-onnx[cpu]" in finding.cure


def test_a_library_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    impostor = tmp_path / "library.so"
    impostor.write_text("no library")
    monkeypatch.setenv("FP4DIT_LIBRARY", str(impostor))
    finding = doctor.CHECKS["library loads"]("library loads")
    assert not finding.ok
    assert "library.so" in finding.cause
    assert finding.cure
    monkeypatch.setenv("FP4DIT_LIBRARY", str(tmp_path / "absent.so"))
    assert not doctor.CHECKS["library file"]("library file").ok


def test_this_installation_is_whole() -> None:
    failed = [f for f in doctor.diagnose().findings if f.needed and not f.ok]
    assert failed == []
