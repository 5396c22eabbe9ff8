"""The command ``convert``: what it prints, and what it refuses in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import Run

pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")

from fp4dit_onnx.bundle.bundle import MANIFEST, REPORT, Bundle
from fp4dit_onnx.report import writing
from fp4dit_onnx.targets import TARGETS


def test_sizes_are_shown(run: Run, demo_bundle: Path, tmp_path: Path) -> None:
    code, out, _ = run("convert", demo_bundle, "-o", tmp_path / "made")
    assert code == 0
    assert "transformer" in out
    assert "text_encoder" not in out, "it is not quantized"
    assert "written for the target inline" in out
    Bundle.open(tmp_path / "made").check_files(deep=True)


def test_the_report_is_written_where_it_can_be(
    run: Run, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    assert run("convert", demo_bundle, "-o", made)[0] == 0
    assert "converted" in json.loads((made / MANIFEST).read_text())
    assert (made / REPORT).is_file()
    Bundle.open(made).check_files(deep=True)
    monkeypatch.setattr(writing, "PACKAGES", ("no_such_package",))
    code, _, err = run("convert", demo_bundle, "-o", tmp_path / "other")
    assert code == 0
    assert "no report.html in" in err
    assert "pip install 'fp4dit-onnx[report]'" in err
    assert not (tmp_path / "other" / REPORT).exists()


def test_json_alone(run: Run, demo_bundle: Path, tmp_path: Path) -> None:
    code, out, _ = run("convert", demo_bundle, "-o", tmp_path / "made", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["target"] == "inline"
    model = tmp_path / "made" / "transformer"
    size = sum(p.stat().st_size for p in model.glob("model.onnx*"))
    assert facts["bytes_after"] == {"transformer": size}
    assert facts["converted"]["transformer"]["bytes"] == size
    assert facts["bytes_before"]["transformer"] < size


def test_dry_run_writes_nothing(run: Run, demo_bundle: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "convert", demo_bundle, "--target", "standard", "-o", tmp_path / "made", "--dry-run"
    )
    assert code == 0
    assert "can be converted to standard" in out
    assert list(tmp_path.iterdir()) == []
    _, out, _ = run("convert", demo_bundle, "--dry-run", "--json")
    assert list(json.loads(out)["bytes_before"]) == ["transformer"]


def test_list(run: Run) -> None:
    code, out, _ = run("convert", "--list", "--json")
    facts = json.loads(out)
    assert code == 0
    assert list(facts["targets"]) == list(TARGETS)
    assert facts["runtimes"]["onnxruntime"]["inline"] == ""
    table = run("convert", "--list")[1]
    assert "onnxruntime does not load standard: " in table


def test_refusals_are_one_line(run: Run, demo_bundle: Path, tmp_path: Path) -> None:
    made, taken = tmp_path / "made", tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    broken = shutil.copytree(demo_bundle, tmp_path / "broken")
    (broken / "transformer" / "model.onnx.data").unlink()
    garbled = shutil.copytree(demo_bundle, tmp_path / "garbled")
    (garbled / MANIFEST).write_text("{")
    cases = {
        (): "no bundle: expected a folder made by export, or --list",
        (demo_bundle,): "no output folder",
        (
            demo_bundle,
            "-o",
            made,
            "--target",
            "trt",
        ): "target 'trt': expected one of fp4dit, inline, standard, nbits, nbits-half",
        (demo_bundle, "-o", made, "--target", "fp4dit"): "fp4dit is what export writes",
        (demo_bundle, "--dry-run", "--target", "fp4dit"): "fp4dit is what export writes",
        (demo_bundle, "-o", taken): "is not empty",
        (demo_bundle, "-o", demo_bundle, "--overwrite"): "overlaps the source",
        (tmp_path / "nowhere", "-o", made): "nowhere",
        (broken, "-o", made): "model.onnx.data not found",
        (garbled, "-o", made): "is not JSON",
    }
    for arguments, message in cases.items():
        run("convert", *arguments).refuses(message)
    assert not made.exists()
    assert (demo_bundle / MANIFEST).is_file()


def test_an_existing_bundle_is_replaced_when_asked(
    run: Run, demo_bundle: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    assert run("convert", demo_bundle, "-o", made)[0] == 0
    assert run("convert", demo_bundle, "-o", made)[0] == 2
    assert run("convert", demo_bundle, "-o", made, "--overwrite")[0] == 0
    code, _, err = run("convert", made, "-o", tmp_path / "again")
    assert code == 2
    assert "is for the target inline already" in err
