"""The table of calibrations of every model's twin, and one row of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

import calibrated_table
from calibrated_table import Row, calibrated, table


def test_a_row_is_of_trained_blocks_and_a_verified_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"calibration_prompts": 2, "steps": 2, "samples": 4, "iterations": 8}
    monkeypatch.setattr(calibrated_table, "FEW", few)
    row = calibrated("dit-xl-2-256", tmp_path)
    assert row.calibrated is not None
    blocks = {
        layer.name.split(".")[1] for layer in row.calibrated.layers if ".attn1." in layer.name
    }
    assert len(row.errors) >= len(blocks)
    assert max(row.errors) <= 1
    assert row.checks == (11, 11)
    assert row.nearest_db is not None
    assert not replace(row, checks=(10, 11)).ok
    assert not replace(row, errors=(1.0, 1.0)).ok
    assert replace(row, errors=(1.0, 0.9)).ok
    cells = table([row], "abc1234").splitlines()[-1].split(" | ")
    assert cells[1:4] == [str(len(row.calibrated.layers)), f"{len(blocks)} attentions", "4"]
    assert "11 of 11 checks" in cells


def test_a_model_that_is_not_calibrated_says_why() -> None:
    row = Row("sana-1600m", why="Sana cannot be calibrated yet")
    assert not row.ok
    last = table([row], "abc1234").splitlines()[-1]
    assert last.endswith("| commit abc1234 | Sana cannot be calibrated yet |")
    assert last.count("|") == table([], "").splitlines()[0].count("|")
