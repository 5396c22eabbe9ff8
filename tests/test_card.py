"""Model cards: metadata of a hub, and the licence that the source itself states."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Run

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.card import card_text, licence_of
from fp4dit_onnx.bundle.manifest import Manifest, read_manifest
from fp4dit_onnx.bundle.remote import url_of
from fp4dit_onnx.errors import UsageError


def metadata(text: str) -> dict[str, object]:
    """The entries between the fences, each a line of JSON."""
    first, block, _ = text.split("---\n", 2)
    assert first == ""
    pairs = (line.split(": ", 1) for line in block.splitlines())
    return {key: json.loads(value) for key, value in pairs}


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    """Of a bundle without quantized layers."""
    return read_manifest(bundle / "quantization.json")


def test_a_card_says_what_the_manifest_says(manifest: Manifest) -> None:
    source = replace(
        manifest.source,
        repository="owner/name",
        licence={"license": "other", "license_name": 'a "b": c'},
    )
    text = card_text(replace(manifest, source=source, model_sqnr_db=21.25))
    assert metadata(text) == {
        "license": "other",
        "license_name": 'a "b": c',
        "library_name": "fp4dit-onnx",
        "tags": ["onnx", "onnxruntime", "fp4", manifest.recipe.bits],
        "base_model": "owner/name",
        "base_model_relation": "quantized",
    }
    assert "| error | 21.2 dB SQNR of its output |" in text
    assert f"{manifest.totals.transformer_bytes:,} bytes" in text
    assert f"| method | {manifest.recipe.method}, {manifest.recipe.bits} |" in text
    bare = card_text(manifest)
    assert "| licence | not stated where the base model was read |" in bare
    assert "license" not in metadata(bare)


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: openrail++\ntags:\n- x\n---\n# Name\nlicense: mit\n", "openrail++"),
        ("---\r\nlicense: 'apache-2.0'\r\n---\r\n", "apache-2.0"),
        ("# Name\nlicense: mit\n", None),
        ("---\nlicense: mit\n", None),
        ("---\nlicense: [mit, other]\n---\n", None),
        ("", None),
        (None, None),
    ],
)
def test_licences_of_sources(tmp_path: Path, card: str | None, found: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card, newline="")
    assert licence_of(tmp_path) == ({} if found is None else {"license": found})


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/bundle", "s3://bucket/bundle"),
        ("file:///shelf/bundle", "file:///shelf/bundle"),
        ("C:/shelf/bundle", None),
        ("shelf/bundle", None),
    ],
)
def test_addresses_are_told_from_paths(path: str, url: str | None) -> None:
    assert url_of(Path(path)) == url


def test_inspect_reads_bundles_elsewhere(run: Run, bundle: Path) -> None:
    """Of large files the sizes alone: there they are compared with the manifest, as here."""
    fsspec = pytest.importorskip("fsspec")
    place = fsspec.filesystem("memory")
    place.put(str(bundle), "/shelf/demo", recursive=True)
    found = json.loads(run("inspect", "memory://shelf/demo", "--json").out)
    expected = json.loads(run("inspect", bundle, "--json").out)
    expected["transformer"]["path"] = "memory://shelf/demo/transformer/model.onnx"
    assert found == expected | {"path": "memory://shelf/demo"}
    assert "bundle memory://shelf/demo" in run("inspect", "memory://shelf/demo").out
    place.pipe("/shelf/demo/vae_decoder/model.onnx.data", b"cut off")
    run("inspect", "memory://shelf/demo").refuses("model.onnx.data has 7 bytes")
    run("inspect", "memory://shelf/none").refuses("memory://shelf/none cannot be read")
    run("inspect", "nowhere://shelf/demo").refuses("nowhere://shelf/demo cannot be read")


def test_the_command_writes_a_card_once(run: Run, bundle: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(bundle, tmp_path / "bundle")
    outcome = run("inspect", mine, "--card")
    assert (outcome.code, outcome.out.strip()) == (0, str(mine / "README.md"))
    assert metadata((mine / "README.md").read_text())["library_name"] == "fp4dit-onnx"
    run("inspect", mine, "--card").refuses("README.md")
    assert run("inspect", mine, "--card", "--overwrite").code == 0
    Bundle.open(mine).check_files(deep=True)
    with pytest.raises(UsageError):
        Bundle.open(mine).card()
