"""The page of measured speeds: its tables and goals, from made-up results."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "performance.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/performance.py as a module."""
    spec = importlib.util.spec_from_file_location("performance", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["performance"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def outcome(name: str, ms: float, share: float | None = None) -> dict[str, Any]:
    seconds = {"median": ms / 1e3, "low": ms / 2e3, "high": ms / 5e2}
    seconds |= {"least": ms / 4e3, "most": ms / 250}
    return {
        "name": name,
        "threads": 2,
        "spinning": True,
        "seconds": seconds,
        "gops": 1 / ms,
        "limit_share": share,
        "ratio": {"median": 20 / ms},
        "sqnr_db": 22.0,
    }


def result(*cases: str) -> dict[str, Any]:
    """A run in which ours takes 4 ms, ONNX Runtime 20 ms, at 0.6 of the limit."""
    outcomes = [outcome("fp4dit avx512_vnni", 4, 0.6), outcome("ort-float32", 20)]
    machine = {
        "cpu": "an EPYC",
        "threads": 2,
        "cores": 2,
        "versions": {"python": "3"},
        "limits": {"avx512_vnni": {"int8": 1800.0, "float": None}},
    }
    listed = [
        {"name": n, "outcomes": outcomes, "absent": {"torch-bf16": "no torch"}} for n in cases
    ]
    return {"machine": machine, "cases": listed}


def test_goals_are_met_or_missed_by_the_worst_case(tool: ModuleType) -> None:
    results = {tool.LINEARS: result("1024x1152x1152", "1024x1152x4608", "1x1152x6912")}
    rows = [row for row in tool.goal_rows(results) if "avx512_vnni" in row]
    against = {(row.split("|")[1], row.split("|")[3]): row for row in rows}
    float32 = next(r for r in rows if "1024x" in r and "ort-float32" in r)
    assert "5.00, 5.00" in float32  # both cases of many rows, not the one of a single row
    assert float32.endswith("| met |")
    limit = next(r for r in rows if "| limit |" in r)
    assert "0.60, 0.60" in limit
    assert limit.endswith("| missed |")
    assert all("not measured" in r for r in rows if tool.STEP in r)
    assert len(against) == len(rows)


def test_page(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cases, who was absent, and what a person wrote below stays."""
    monkeypatch.setattr(tool, "run", lambda measurement: result(f"case of {measurement.title}"))
    page = tmp_path / "performance.md"
    page.write_text("earlier words\n## Reading\nby a person\n")
    tool.main(["--output", str(page), "--seconds", "1"])
    text = page.read_text()
    assert "earlier words" not in text
    assert text.endswith("\n## Reading\nby a person\n")
    assert (
        "| fp4dit avx512_vnni | 4.000 | 2.000 - 8.000 | 1.000 - 16.000 | 0 | 60% | 5.00 | 22.0 |"
        in text
    )
    assert "Absent: torch-bf16: no torch" in text
    assert "avx512_vnni int8 1800" in text
    assert text.count("**case of") == 6
    assert tool.STEP not in text.split("## Goals")[1].split("## ", 1)[1]
    tool.main(["--output", str(page), "--step", str(tmp_path)])
    assert (
        f"fp4dit-onnx bench {tmp_path} --float {tmp_path / 'float' / 'model.onnx'}"
        in page.read_text()
    )


def test_a_failing_command_stops_the_tool(
    tool: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        tool.run(tool.Measurement("bad", ("--shape", "1x2")))
    assert caught.value.code == 2
    assert "1x2" in capfd.readouterr().err


def test_it_reads_what_the_command_prints(tool: ModuleType) -> None:
    given = ("--shape", "4x32x8", "--peer", "ort-float32", "--isa", "scalar", "--rounds", "3")
    found = tool.run(tool.Measurement("small", given))
    table = "\n".join(tool.case_table(found["cases"][0]))
    assert "| fp4dit scalar |" in table
    assert "| ort-float32 |" in table
    assert json.dumps(found)
