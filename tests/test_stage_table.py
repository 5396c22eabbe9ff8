"""The tool that measures single stages: recipes that it writes, and its table."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from stage_table import command, known, options, recipe, table

from fp4dit_onnx.calibration.methods import read_method, use_of
from fp4dit_onnx.evaluation.metrics import Score


@pytest.mark.parametrize("transform", ["none", *known("transform", "branch")])
def test_every_transform_makes_a_recipe(transform: str, tmp_path: Path) -> None:
    """With the data and formats of its base."""
    path = tmp_path / "r.toml"
    path.write_text(recipe("tuned", (transform, "weighted", "gptq")))
    method = read_method(path)
    names = [use_of(stage) for stage in method.stages]
    assert names == [name for name in (transform, "weighted", "gptq") if name != "none"]
    assert method.grid == "fp"
    assert method.data.guided == 3.0


def test_the_best_is_named() -> None:
    scores = {
        ("none", "absmax", "nearest"): Score(20.0, 0.5, (20.0,)),
        ("none", "absmax", "gptq"): Score(22.0, None, (22.0,)),
        ("hadamard", "absmax", "nearest"): Score(21.0, 0.5, (21.0,)),
        ("hadamard", "absmax", "gptq"): Score(24.04, 0.5, (24.04,)),
    }
    assert table(scores, "w4a4").splitlines() == [
        "| transform | range | nearest | gptq |",
        "| --- | --- | --- | --- |",
        "| none | absmax | 20.0 (0.5) | 22.0 |",
        "| hadamard | absmax | 21.0 (0.5) | **24.0 (0.5)** |",
        "",
        "Best at w4a4: hadamard + absmax + gptq, 24.0 dB.",
    ]


def test_the_command_names_no_place_of_this_machine() -> None:
    words = ["--bits", "w4a4", "--transforms", "none; awq", "--prompts", "8", "--work", "/a/w"]
    given = options().parse_args([*words, "--pipeline", "/a/b/even"])
    said = "--bits w4a4 --transforms 'none; awq' --prompts 8 --pipeline even"
    assert command(given) == f"python tools/stage_table.py {said}"
