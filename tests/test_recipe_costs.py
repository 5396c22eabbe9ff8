"""The tool that exports PixArt-XL by every recipe: what it asks for, its rows, and resuming."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import recipe_costs
from recipe_costs import RECIPES, case, measured, step_ratio, table

from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.exporting.checks import check_choices
from fp4dit_onnx.exporting.export import ExportRequest, export
from fp4dit_onnx.exporting.plan import work_beside

ROW = {"recipe": "gptq", "bits_per_weight": 4.156, "minutes": 7.26, "peak": 4.5}


def test_recipes_without_gradients_and_their_options() -> None:
    assert "tuned" in RECIPES
    trained = {"fp4dit", "2dquant", "ptq4dit", "activation-regularization", "affinequant"}
    assert not trained & set(RECIPES)
    for name in RECIPES:
        needs_data = method_by_name(name, "fast").needs_data
        assert ("--calibration-prompts" in case(name).options) == needs_data
    assert [name for name in RECIPES if "--time" in case(name).options] == ["q-dit"]
    check_choices(ExportRequest(Path("b"), method="q-dit", preset="fast", time="20m", samples=16))


def test_the_table() -> None:
    (line,) = table([{**ROW, "step": 1.204}]).splitlines()[2:]
    assert line == "| gptq | 4.16 | 7.3 | 4.50 | 1.20 |"


def test_what_is_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(recipe_costs, "export", refuse)
    kept = {**ROW, "step": 1.0}
    (tmp_path / "gptq.json").write_text(json.dumps(kept))
    assert measured("gptq", tmp_path) == kept


def test_two_bundles_run_by_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    export(ExportRequest(made, method="fp-rtn", components="transformer", measure=False))
    monkeypatch.setattr(recipe_costs, "ROUNDS", 1)
    monkeypatch.setattr(recipe_costs, "TOKENS", 3)
    assert step_ratio(made, made) > 0
    with pytest.raises(Fp4DitError, match=r"tuned: .*none"):
        step_ratio(tmp_path / "none", made)


def test_an_export_whose_minutes_are_wanted_resumes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "gptq"
    work = work_beside(bundle)
    work.mkdir()
    (work / "samples.pt").touch()

    def killed(*_: object, **__: object) -> subprocess.CompletedProcess[bytes]:
        assert not work.exists()
        return subprocess.CompletedProcess([], 9)

    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(Fp4DitError, match="failed with code 9"):
        recipe_costs.export(case("gptq"), tmp_path / "checkpoint", bundle)


def test_an_unknown_recipe_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe_costs.main(["fp4dit", "--folder", str(tmp_path / "f")]) == 2
    assert "unknown recipe fp4dit: expected some of awq, " in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


def test_the_page_names_what_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint").mkdir()
    for name in ("gptq", "tuned"):
        (tmp_path / f"{name}.json").write_text(json.dumps({**ROW, "recipe": name, "step": 1.0}))
    page = tmp_path / "methods.md"
    page.write_text("<!-- costs -->\nearlier\n<!-- end of costs -->\n")
    monkeypatch.setattr(recipe_costs.Section, "path", page)
    assert recipe_costs.main(["gptq", "--folder", str(tmp_path), "--write"]) == 0
    text = page.read_text()
    assert "| gptq | 4.16 | 7.3 | 4.50 | 1.00 |" in text
    assert "| tuned |" not in text
    others = [name for name in RECIPES if name != "gptq"]
    assert f"Not measured yet: {', '.join(others)}." in text
