"""Transformers in one file: the tensors and the bundle of the folder, and files that are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run
from random_pipeline import make
from safetensors.numpy import save_file

pytest.importorskip("gguf")

import gguf
from original_layout import ORIGINALS, rounded, save_gguf, save_original, weights_of

from fp4dit_onnx.checkpoint.assembling import assembled
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.checkpoint.tensor_reading import read_float32

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Makes the folder of an official model's twin, transformer and scheduler, each once."""
    place = tmp_path_factory.mktemp("singles")

    @cache
    def folder(name: str) -> Path:
        make(name, place / name, twin=True, components=("transformer", "scheduler"))
        return place / name

    return folder


def tensors_of(folder: Path) -> dict[str, Any]:
    from fp4dit_onnx.network.stored import fitted

    found = fitted(open_checkpoint(folder, only=("transformer",))).tensors
    return {name: read_float32(info) for name, info in found.items()}


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("kind", [None, "F16", "Q8_0"])
def test_a_file_has_the_folders_tensors(
    name: str, kind: str | None, folders: Folders, tmp_path: Path
) -> None:
    folder = folders(name)
    stored = weights_of(folder)
    if kind is None:
        file = save_original(name, stored, tmp_path / "model.safetensors")
    else:
        of_type = gguf.GGMLQuantizationType[kind]
        file = save_gguf(name, stored, tmp_path / "model.gguf", of_type)
        stored = {n: rounded(values, of_type) for n, values in stored.items()}
    found = tensors_of(assembled(file, str(folder)))
    assert found.keys() == stored.keys()
    for key, values in stored.items():
        np.testing.assert_array_equal(found[key], values, err_msg=key)


def test_the_bundle_is_the_folders(folders: Folders, tmp_path: Path) -> None:
    from fp4dit_onnx.exporting.export import ExportRequest, export

    name = "pixart-alpha-256"
    file = save_original(name, weights_of(folders(name)), tmp_path / f"{name}.safetensors")
    asked: dict[str, Any] = {
        "method": "fp-rtn",
        "components": "transformer",
        "measure": False,
        "report": False,
    }
    one = export(ExportRequest(tmp_path / "a", folders(name), **asked)).bundle
    two = export(ExportRequest(tmp_path / "b", file, config=str(folders(name)), **asked)).bundle
    places = {p.relative_to(one) for p in one.rglob("*") if p.is_file()}
    assert places == {p.relative_to(two) for p in two.rglob("*") if p.is_file()}
    for place in places - {Path("quantization.json")}:  # which has times
        assert (one / place).read_bytes() == (two / place).read_bytes(), place


def test_parts_come_from_other_folders(folders: Folders, tmp_path: Path) -> None:
    name = "pixart-alpha-256"
    file = save_original(name, weights_of(folders(name)), tmp_path / "model.safetensors")
    others = tmp_path / "others"
    make(name, others, twin=True, components=("text_encoder", "tokenizer", "vae"))
    whole = open_checkpoint(assembled(file, str(folders(name)), others, others / "vae"))
    assert set(whole.components) == {"transformer", "scheduler"}  # of the index of the folder
    official = open_checkpoint(assembled(file, name, others / "text_encoder", others / "vae"))
    assert set(official.components) == {
        "transformer",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "vae",
    }
    vae = official.components["vae"]
    assert vae.tensors["decoder.conv_in.weight"].file.parent == others / "vae"
    assert not list(official.folder.rglob("*.safetensors"))


def refused(run: Run, file: Path, *words: object) -> str:
    """The line that a dry run says."""
    code, out, error = run("export", file, "--dry-run", "--method", "fp-rtn", *words)
    assert (code, out, error.count("\n")) == (2, "", 1), error
    return error


def test_an_unknown_layout_is_named_by_its_keys(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"unet.one": np.ones(3, np.float32), "unet.two": np.ones(3, np.float32)}, file)
    assert "none of its 2 tensors is known by name ('unet.one', 'unet.two')" in refused(run, file)


def test_pickles_are_refused_with_the_conversion(run: Run, tmp_path: Path) -> None:
    for suffix in ("bin", "ckpt", "pth"):
        (tmp_path / f"model.{suffix}").write_bytes(b"PK")
        said = refused(run, tmp_path / f"model.{suffix}")
        assert "can run any code" in said
        assert "weights_only=True" in said


def test_damaged_and_unknown_gguf(run: Run, folders: Folders, tmp_path: Path) -> None:
    name = "pixart-alpha-256"
    kind = gguf.GGMLQuantizationType.F16
    file = save_gguf(name, weights_of(folders(name)), tmp_path / "model.gguf", kind)
    whole = file.read_bytes()
    for size in (0, 3, 30, len(whole) // 50, len(whole) - 100):
        file.write_bytes(whole[:size])
        assert "expected a whole GGUF file" in refused(run, file), size
    key = b"t_block.1.weight"
    at = whole.index(key) + len(key) + 4 + 2 * 8
    for number, shown in ((99, "GGUF type 99"), (9, "is of GGUF type Q8_1")):
        file.write_bytes(whole[:at] + number.to_bytes(4, "little") + whole[at + 4 :])
        assert shown in refused(run, file)


def test_a_file_without_a_configuration(run: Run, folders: Folders, tmp_path: Path) -> None:
    name = "pixart-alpha-256"
    stored = weights_of(folders(name))
    file = save_original(name, stored, tmp_path / "model.safetensors")
    assert "of other sizes than the official models'" in refused(run, file)
    assert "no official model of this name" in refused(run, file, "--config", "pixart")
    assert "has shape" in refused(run, file, "--config", name, "--components", "transformer")
    assert "leave out --vae" in refused(run, folders(name), "--vae", tmp_path)
    other = refused(run, file, "--config", folders("hunyuan-dit-1.2"))
    assert "holds a PixArtTransformer2DModel" in other
    stored.pop("transformer_blocks.1.attn1.to_out.0.weight")
    save_original(name, stored, file)
    told = refused(run, file, "--config", folders(name), "--components", "transformer")
    assert "no tensor 'transformer_blocks.1.attn1.to_out.0.weight'" in told


@pytest.mark.parametrize(
    ("name", "positions"), [("pixart-alpha-256", 256), ("pixart-alpha-512", 1024)]
)
def test_official_models_are_told_apart(name: str, positions: int) -> None:
    from fp4dit_onnx.checkpoint.layouts import LAYOUTS
    from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
    from fp4dit_onnx.official.models import MODELS

    def stored(*shape: int) -> TensorInfo:
        return TensorInfo(shape, "F32", Path("model"), 0, 0)

    told = {"pos_embed": stored(1, positions, 1152), "y_embedder.y_embedding": stored(120, 4096)}
    own = [n for n, p in MODELS.items() if LAYOUTS[0].is_of(told, p.parts["transformer"])]
    assert own == [name]


def test_every_layout_is_of_a_family() -> None:
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    from fp4dit_onnx.checkpoint.layouts import LAYOUTS
    from fp4dit_onnx.families import FAMILIES

    assert {layout.transformer for layout in LAYOUTS} == {f.transformer for f in FAMILIES}
    assert all(one.names or one.transformer in SINGLE_FILE_LOADABLE_CLASSES for one in LAYOUTS)
