"""The table of runtimes: what counts as the same image, and what is said of absent runtimes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("onnxruntime")

import deploy_rows
import deploy_table
from deploy_rows import ROWS, Command, NotRunError, Row, Stage
from emulation import CheckError

Pixels = npt.NDArray[np.uint8]


@pytest.fixture
def reference() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def row(**changes: Any) -> Row:
    def prepare(row: Row, stage: Stage) -> Command:
        raise NotRunError("no GPU")

    return Row(**{"key": "k", "runtime": "R", "layers": "kernels", "prepare": prepare, **changes})


def test_the_same_picture_runs(reference: Pixels) -> None:
    found = deploy_table.judged(row(exact=True), "1.0", reference, reference, 0.5)
    assert found.ok
    assert "| R | 1.0 | kernels | all bits | all bits | 0.50 | runs |" in deploy_table.table(
        [found]
    )


def test_a_picture_one_bit_off_is_near_but_not_exact(reference: Pixels) -> None:
    other = reference.copy()
    other[0, 0, 0] ^= 1
    assert deploy_table.judged(row(), "1.0", other, reference, 0.5).ok
    found = deploy_table.judged(row(exact=True), "1.0", other, reference, 0.5)
    assert found.failed
    assert deploy_table.table([found]).endswith("| fails |")


@pytest.mark.parametrize(
    "wrong", [lambda a: 255 - a, lambda a: a[::-1], lambda a: np.roll(a, 1, 2), lambda a: a[:4]]
)
def test_another_picture_fails(reference: Pixels, wrong: Any) -> None:
    assert deploy_table.judged(row(), "1.0", wrong(reference), reference, 0.5).failed


def test_absent_runtimes_are_not_run_and_not_green(tmp_path: Path, reference: Pixels) -> None:
    found = deploy_table.Outcome("k", "R", "kernels", problem="no GPU", tried=False)
    assert not found.ok
    assert not found.failed
    assert deploy_table.table([found]).endswith("| - | not run: no GPU |")
    stage = Stage(tmp_path, tmp_path, "prompt")
    gpu = next(row for row in ROWS if row.key == "cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy_rows.shutil, "which", lambda name: None)
        for key in ("cuda", "node", "web"):
            with pytest.raises(NotRunError):
                next(r for r in ROWS if r.key == key).prepare(gpu, stage)


def test_what_fails_before_it_draws_has_failed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Pixels
) -> None:
    def broken(row: Row, stage: Stage) -> Command:
        raise CheckError(f"exit code 1: cmake\n{stage.work}/a.cc: no such header")

    monkeypatch.setattr(deploy_table, "reference_picture", lambda stage: reference)
    rows = [row(prepare=broken), row(key="absent")]
    found = deploy_table.outcomes(rows, Stage(bundle, tmp_path, "prompt"), 1)
    assert [(o.failed, o.problem) for o in found] == [
        (True, "WORK/a.cc: no such header"),
        (False, "no GPU"),
    ]


def test_a_process_that_fails_is_named_by_its_last_line(tmp_path: Path) -> None:
    code = "import sys; sys.exit('warning\\nerror: no such layer')"
    command = Command((sys.executable, "-c", code), tmp_path / "p.png", "1.0")
    with pytest.raises(CheckError, match=r"^error: no such layer$"):
        deploy_table.run(command)
    command = Command((sys.executable, "-c", ""), tmp_path / "p.png", "1.0")
    with pytest.raises(CheckError, match="exit code 0, no image"):
        deploy_table.run(command)


def test_places_of_this_machine_are_not_told(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "b", tmp_path / "w", "prompt")
    error = CheckError(f"error: cannot load {tmp_path}/b/model.onnx with {tmp_path}/w/venv")
    text = deploy_table.plain_text(error, stage)
    assert text == "cannot load BUNDLE/model.onnx with WORK/venv"


def test_a_prompt_that_tells_no_runtimes_apart_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The transformer of this bundle is a formula, under which seeds hardly matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy_table, "SAME_PICTURE_DB", 0.0)
        given = ["--bundle", str(bundle), "--only", "cuda", "--work", str(tmp_path)]
        assert deploy_table.main(given) == 2
    assert "take another --prompt" in capsys.readouterr().err


def test_part_of_the_table_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        deploy_table.main(["--write", "--only", "cpp"])
    assert "--write needs every row" in capsys.readouterr().err


def test_the_page_holds_the_table_that_the_tool_writes() -> None:
    own = deploy_table.TABLE.read()
    for entry in ROWS:
        assert f"| {entry.runtime} | " in own
    assert deploy_table.TABLE.replaced(own) == deploy_table.TABLE.path.read_text()
