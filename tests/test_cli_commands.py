"""The commands generate and inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from manifests import EMPTY, layer
from PIL import Image

from fp4dit_onnx import ops
from fp4dit_onnx.bundle.bundle import MANIFEST, Bundle
from fp4dit_onnx.commands.generate import chosen_seeds, picture_paths
from fp4dit_onnx.commands.layer_table import group_layers
from fp4dit_onnx.errors import UsageError


def test_picture_paths(tmp_path: Path) -> None:
    one = picture_paths(tmp_path / "a.png", [("x", 0)], overwrite=False)
    assert one == [tmp_path / "a.png"]
    images = [("Red apple!", 0), ("///", 0)]
    several = picture_paths(tmp_path / "folder", images, overwrite=False)
    assert [p.name for p in several] == ["0-red-apple.png", "1-image.png"]
    with pytest.raises(UsageError, match="one file for 2 images: give a folder"):
        picture_paths(tmp_path / "a.png", images, overwrite=False)
    (tmp_path / "a.png").touch()
    with pytest.raises(UsageError, match="exists"):
        picture_paths(tmp_path / "a.png", [("x", 0)], overwrite=False)
    assert picture_paths(tmp_path / "a.png", [("x", 0)], overwrite=True) == one


def test_images_of_several_seeds_are_named_by_seed(tmp_path: Path) -> None:
    images = [(text, seed) for text in ("x", "y", "x") for seed in (9, 10)]
    names = [path.name for path in picture_paths(tmp_path, images, overwrite=False)]
    assert names[:3] == ["0-x-seed-09.png", "0-x-seed-10.png", "1-y-seed-09.png"]
    assert len(set(names)) == 6


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((None, None, None), [0]),
        ((5, None, 3), [5, 6, 7]),
        ((None, "3, 1,2", None), [3, 1, 2]),
        ((None, "3,1", 2), [3, 1]),
    ],
)
def test_seeds(options: tuple[Any, Any, Any], found: list[int]) -> None:
    assert chosen_seeds(*options) == found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((None, "1,x", None), "whole numbers"),
        ((None, "1,", None), "whole numbers"),
        ((None, "-1", None), "whole numbers"),
        ((None, "1,2,1", None), "each once"),
        ((None, "9" * 5000, None), "whole numbers"),
        ((None, "1,18446744073709551616", None), "seed = 18446744073709551616"),
        ((-1, None, None), "seed = -1"),
        ((None, None, 0), "count = 0"),
        ((None, None, 10**12), "count = 1000000000000"),
        ((1, "1,2", None), "--seed and --seeds"),
        ((None, "1,2", 3), "--count 3 with 2 seeds"),
    ],
)
def test_seeds_that_contradict(options: tuple[Any, Any, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        chosen_seeds(*options)


class FakePipeline:
    """Stands for runtime.pipeline.Pipeline: generates grey images."""

    def __init__(self, folder: Path, **_: object) -> None:
        self.steps, self.height, self.width = 2, 8, 8

    def settings(self, **_: object) -> FakePipeline:
        """Itself, as it has what is asked of them."""
        return self

    def generate(self, prompts: list[str], *, progress: Any, **_: object) -> list[Image.Image]:
        """A grey image a prompt."""
        progress(1, 2)
        return [Image.new("RGB", (8, 8), "grey") for _ in prompts]


def test_generate_writes_pictures(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fp4dit_onnx.runtime.pipeline.Pipeline", FakePipeline)
    monkeypatch.setattr(Bundle, "open", lambda folder: Bundle(Path(folder), EMPTY))
    outcome = run(
        "generate", "b", "--prompt", "x", "--prompt", "y", "-o", tmp_path / "o", "--json"
    )
    assert outcome.code == 0
    files = [Path(row["file"]) for row in json.loads(outcome.out)["pictures"]]
    assert sorted(files) == sorted((tmp_path / "o").iterdir())
    with Image.open(files[0]) as picture:
        assert picture.size == (8, 8)


def test_groups_of_layers() -> None:
    rows = [
        layer("blocks.0.to_q", weight_sqnr_db=20.0),
        layer("blocks.1.to_q", weight_sqnr_db=30.0),
        layer("proj", activation_format=None),
    ]
    first, second = group_layers(rows)
    assert (first.name, first.count, first.bytes) == ("blocks.*.to_q", 2, 144)
    names = [group.name for group in group_layers([*rows, layer("adaln.linear")])]
    assert names == ["adaln.linear", "blocks.*.to_q", "proj"]  # sorted
    alone = layer("embedders.2.linear")
    assert [group.name for group in group_layers([alone])] == ["embedders.2.linear"]
    assert (first.weight_sqnr_db, first.output_sqnr_db) == (25.0, None)
    assert second.formats == "e2m1 / float"


def test_inspect_model(run: Any, small_model: Path) -> None:
    facts = json.loads(run("inspect", small_model, "--json").out)
    assert facts["kind"] == "model"
    assert facts["opsets"] == {"ai.onnx": ops.OPSET, ops.DOMAIN: ops.VERSION}
    assert facts["inputs"] == [{"name": "x", "dtype": "float", "shape": ["m", 32]}]
    assert facts["bytes"] == {"packed codes": 64, "weight scales": 8, "float": 16}
    assert facts["without_function"] == []
    nodes = {f["name"]: f["nodes"] for f in facts["functions"]}
    assert facts["expanded_nodes"] == sum(nodes.values()) + nodes["FpDequantize"]  # called twice
    (layer,) = facts["layers"]
    assert (layer["weight_format"], layer["activation_format"]) == ("e2m1", "e2m3")
    assert (layer["shape"], layer["group_size"]) == ([4, 32], 32)
    assert "FpLinear" in run("inspect", small_model).out


def test_inspect_shows_text_of_an_attribute_that_is_not_utf8(run: Any, small_model: Path) -> None:
    model = onnx.load(small_model)
    for attribute in next(n for n in model.graph.node if n.op_type == "FpLinear").attribute:
        if attribute.name == "weight_format":
            attribute.s = b"\xffe2m1"
    onnx.save(model, small_model)
    (layer,) = json.loads(run("inspect", small_model, "--json").out)["layers"]
    assert layer["weight_format"] == "\\xffe2m1"


def test_inspect_names_operators_without_a_body(run: Any, small_model: Path) -> None:
    model = onnx.load(small_model)
    del model.functions[:]
    onnx.save(model, small_model)
    facts = json.loads(run("inspect", small_model, "--json").out)
    assert facts["without_function"] == ["com.fp4dit.FpLinear", "com.fp4dit.FpQuantize"]
    assert "runs with its library only" in run("inspect", small_model).out


@pytest.mark.parametrize("content", [b"", b"no model at all", bytes(100)])
def test_inspect_refuses_other_files(run: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    run("inspect", tmp_path / "x.onnx").refuses("is not an ONNX model", "expected")


def test_inspect_pipeline(run: Any, demo_folder: Path) -> None:
    facts = json.loads(run("inspect", demo_folder, "--json").out)
    assert facts["family"] == "PixArt-alpha"
    (transformer,) = (c for c in facts["components"] if c["name"] == "transformer")
    assert transformer["bytes"] == sum(t["bytes"] for t in facts["tensors"])
    assert "proj_out.weight" in run("inspect", demo_folder).out


@pytest.mark.parametrize("what", ["bundle", "model", "pipeline"])
def test_inspect_fits_100_columns_with_a_row_a_kind(
    run: Any, demo_bundle: Path, demo_folder: Path, what: str
) -> None:
    model = demo_bundle / "transformer" / "model.onnx"
    shown = run("inspect", {"bundle": demo_bundle, "model": model, "pipeline": demo_folder}[what])
    lines = shown.out.splitlines()
    tables = [line for line in lines if not line.startswith(("bundle ", "model ", "pipeline "))]
    assert max(map(len, tables)) <= 100
    names = [line.split()[0] for line in lines if ".*." in line]
    assert "transformer_blocks.*.attn1.to_q" in " ".join(names)
    assert names == sorted(names)
    assert len(names) == len(set(names))
    assert not any("transformer_blocks.0." in line for line in lines)


def test_inspect_refuses_a_damaged_bundle(run: Any, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format_version": 99}')
    run("inspect", tmp_path).refuses("format_version 99", "reads 1")
