"""Recipe files: written, read again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx_graphsurgeon")

from fp4dit_onnx.calibration.recipe_tables import method_names
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.better import better_recipe
from fp4dit_onnx.exporting.plan import plan
from fp4dit_onnx.exporting.recipe_files import recipe_text, with_recipe
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.spec.spec import LayerSpec

ASKED: dict[str, Any] = {
    "method": "int-adaround",
    "preset": "fast",
    "bits": "w4a8",
    "range": "mse",
    "scale": "e8m0",
    "group_size": 32,
    "rules": ("proj_out=none",),
    "iterations": 7,
}


def test_a_saved_recipe_is_the_same_request(tmp_path: Path) -> None:
    first = plan(ExportRequest(tmp_path / "b", **ASKED))
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text(first.request, first.method), encoding="utf-8")
    again = plan(ExportRequest(tmp_path / "b", recipe=path))
    assert again.specs == first.specs
    assert again.skipped == first.skipped
    assert (again.method.stages, again.method.data) == (first.method.stages, first.method.data)
    assert recipe_text(again.request, again.method) == path.read_text(encoding="utf-8")
    assert {s.weight.scale for s in again.specs.values()} == {"e8m0"}


def test_what_is_asked_for_beside_a_recipe_wins(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "fp-rtn"\n[export]\nbits = "w4a8"\ngroup_size = 64\n')
    request = with_recipe(ExportRequest(tmp_path / "b", recipe=path, group_size=32))
    assert (request.bits, request.group_size) == ("w4a8", 32)


def test_what_is_asked_for_wins_where_it_is_the_default_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'extends = "gptq"\n[export]\nbits = "w8a8"\nform = "qdq"\ntarget = "inline"\n',
        encoding="utf-8",
    )
    usual = ExportRequest(tmp_path / "b")
    asked = {name: getattr(usual, f"resolved_{name}") for name in ("bits", "form", "target")}
    by_file = with_recipe(ExportRequest(tmp_path / "b", recipe=path))
    assert (by_file.bits, by_file.form, by_file.target) == ("w8a8", "qdq", "inline")
    both = with_recipe(ExportRequest(tmp_path / "b", recipe=path, **asked))
    assert {name: getattr(both, name) for name in asked} == asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[export]\noutput = "x"\n', "unknown key 'output': expected one of bits"),
        ("[export]\nbits = 4\n", "bits is 4, expected a text"),
        ('[export]\ngroup_size = "a"\n', "group_size is 'a', expected a whole number"),
        ("export = 3\n", "expected a table"),
        ('[export]\nbits = "w5a5"\n', "unknown bits 'w5a5'"),
        ('[export]\nrules = ["nothing=e2m1"]\n', "'nothing' matches none of the"),
        ('[export]\nscale = "e9m9"\n', "unknown scale format 'e9m9': expected one of float16"),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("[export]", 'extends = "fp-rtn"\n[export]'))
    with pytest.raises(UsageError, match=message):
        plan(ExportRequest(tmp_path / "b", recipe=path))


def test_commands(tmp_path: Path, run: Any) -> None:
    saved = tmp_path / "saved.toml"
    assert run("export", "--dry-run", "--method", "fp-rtn", "--save-recipe", saved).code == 0
    assert 'use = "nearest"' in saved.read_text(encoding="utf-8")
    code, out, _ = run("recipes", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [row["name"] for row in rows] == list(method_names())
    assert {row["name"]: row["needs"] for row in rows}["fp-rtn"] == "weights only"
    assert all(row["summary"] for row in rows)
    assert run("export", "--dry-run", "--save-recipe", saved / "r.toml").code == 2


@pytest.mark.parametrize("name", ["tuned-best", "q-dit", "fp-rtn"])
def test_a_printed_recipe_is_a_file_that_export_takes(tmp_path: Path, run: Any, name: str) -> None:
    code, out, _ = run("recipes", name)
    assert code == 0
    path = tmp_path / "own.toml"
    path.write_text(out, encoding="utf-8")
    for bits in ("w4a8", "w4a6"):
        own, named = (
            plan(ExportRequest(tmp_path / "b", bits=bits, **given))
            for given in ({"recipe": path}, {"method": name})
        )
        assert own.method.stages == named.method.stages
        assert own.method.data == named.method.data
        assert own.specs == named.specs
    assert json.loads(run("recipes", name, "--json").out)["source" if name != "fp-rtn" else "grid"]


def test_a_recipe_that_is_not_there_is_a_line(run: Any) -> None:
    code, out, err = run("recipes", "tunde")
    assert (code, out) == (2, "")
    assert "tunde" in err
    assert "tuned-best" in err


@pytest.mark.parametrize(
    ("bits", "method", "activation", "size"),
    [
        ("w4a6", "tuned", "e2m3", None),
        ("w4a8", "tuned", "int8", None),
        ("w4a4", "tuned", "e2m1", 16),
        ("w4a6", "tuned-best", "e2m3", None),
    ],
)
def test_a_recipe_says_formats_by_bits(
    tmp_path: Path, bits: str, method: str, activation: str, size: int | None
) -> None:
    planned = plan(ExportRequest(tmp_path / "b", bits=bits, method=method))
    inner = planned.specs["transformer_blocks.0.ff.net.0.proj"]
    assert inner == LayerSpec.of("e2m1", activation, 32, "int4*f32", size)
    assert planned.recipe.candidates(["transformer_blocks.0.ff.net.0.proj"])
    outer = [spec.formats for name, spec in planned.specs.items() if "blocks" not in name]
    assert outer == [("int8", "int8")] * 6
    assert set(planned.attention.values()) == {"int8"}
    asked = plan(ExportRequest(tmp_path / "b", bits=bits, method=method, group_size=64))
    assert asked.specs["transformer_blocks.0.ff.net.0.proj"].group_size == 64


def test_the_default_names_the_recipe_that_keeps_more(tmp_path: Path) -> None:
    line = better_recipe(plan(ExportRequest(tmp_path / "b")))
    assert line is not None
    assert line.startswith("--method tuned: ")
    assert "in place of" in line
    for other in (
        {"method": "fp-rtn"},
        {"bits": "w8a8"},
        {"weight_format": "int4", "scale": "e8m0"},
    ):
        found = better_recipe(plan(ExportRequest(tmp_path / "b", **other)))
        assert (found is None) == ("scale" not in other)
