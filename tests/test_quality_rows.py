"""tools/quality.py: what it calibrates is kept, and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")

from quality import PUBLISHED, ROWS, Bench, Row, main
from quality_page import COLUMNS

from fp4dit_onnx.calibration.recipe_tables import method_names

PIPELINE = Path(__file__).parent / "pipelines" / "dit"
ROW = Row("gptq", "gptq", "fast")


def test_weights_outlive_the_work_that_made_them(tmp_path: Path, one_torch_thread: None) -> None:
    def bench() -> Bench:
        return Bench(PIPELINE, tmp_path, prompts=1, seeds=1, columns=["w4a6"])

    first = bench()
    state, seconds = first.calibrated(ROW, "w4a6")
    assert [path.name for path in tmp_path.iterdir()] == ["gptq.safetensors"]
    again, known = bench().calibrated(ROW, "w4a6")
    assert known == seconds
    for name, layer in state.layers.items():
        np.testing.assert_array_equal(layer.weight(), again.layers[name].weight())
    found = first.measured(ROW, "w4a6", state)
    assert found["psnr"]["mean"] > 15
    kept = first.measured(ROW, "w4a6", again)
    assert kept["psnr"]["values"] == list(found["psnr"]["values"])


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("tuned", ["w4a8", "w4a6", "w4a4"]),
        ("tuned, 4.5 bits", ["w4a6"]),
        ("ptq4dit", ["w8a8", "w4a8", "w4a6"]),
        ("awq", ["w4a16", "w4a8", "w4a6"]),
        ("hq-dit", ["w4a8", "w4a6", "w4a4"]),
        ("q-dit", ["w4a8", "w4a6"]),
    ],
)
def test_a_row_is_measured_at_the_bits_it_was_made_for(name: str, columns: list[str]) -> None:
    (row,) = (row for row in ROWS if row.name == name)
    assert row.columns(COLUMNS) == columns
    assert row.columns(["w4a6"]) == ["w4a6"]


def test_each_recipe_has_a_row() -> None:
    assert {row.method for row in ROWS} == set(method_names())
    assert {"2dquant", "ptq1.61-restored", "vidit-q"} < {row.name for row in PUBLISHED}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        *((name, False) for name in ("int-rtn", "fp4dit balanced, auto", "gptq, e1m2")),
        *((name, False) for name in ("four-over-six", "fp-adaround fast")),
        *((name, True) for name in ("tuned", "ptq1.61", "2dquant", "smoothquant", "q-dit")),
    ],
)
def test_weights_are_shared_by_columns_only_if_activations_stay_as_they_are(
    name: str, own: bool
) -> None:
    (row,) = (row for row in ROWS if row.name == name)
    assert row.by_activations == own


def test_a_row_of_a_recipe_file(tmp_path: Path, one_torch_thread: None) -> None:
    """Its formats are asked for, and what was kept of other ones is not taken for them."""
    own, page = tmp_path / "own.toml", tmp_path / "page.md"
    stages = "".join(f'[[stage]]\nuse = "{name}"\n' for name in ("absmax", "nearest"))
    few = ["--bits", "w4a6", "--prompts", "1", "--seeds", "1", "--work", str(tmp_path / "work")]
    given = ["--recipes", str(own), *few, "--pipeline", str(PIPELINE), "--output", str(page)]
    effort = []
    for outer in ("", '[export]\nouter_layers = "int8/int8"\n'):
        own.write_text('summary = "s"\nextends = "fp-rtn"\n' + stages + outer)
        assert main(given) == 0
        lines = page.read_text().splitlines()
        rows = [line for line in lines if line.startswith("| ") and "---" not in line]
        assert {row.split("|")[1].strip() for row in rows} == {"method", "comparison", "own"}
        effort.append(rows[-1])
    assert "int8" not in effort[0]
    assert "int8" in effort[1]


def test_a_recipe_file_that_cannot_be_read_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    assert main(["--recipes", str(tmp_path / "none.toml"), "--work", str(work)]) == 2
    assert "none.toml" in capsys.readouterr().err
    assert not work.exists()
