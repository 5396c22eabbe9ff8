"""Bundles made of links: Hugging Face's cache works, other links out of a bundle are not followed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.external_data import load_tensor
from fp4dit_onnx.bundle.probe import load_model
from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.system.links import followed


def in_a_cache(bundle: Path, hub: Path) -> Path:
    """The bundle as huggingface_hub keeps what it downloads."""
    model = hub / "models--someone--bundle"
    blobs, snapshot = model / "blobs", model / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(p for p in bundle.rglob("*") if p.is_file())):
        link = snapshot / file.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blobs / f"{number:040x}")
        link.symlink_to(os.path.relpath(blobs / f"{number:040x}", link.parent))
    return snapshot


@pytest.fixture
def cached(demo_bundle: Path, tmp_path: Path) -> Path:
    """A bundle in a cache, reached through a link as on a machine with a disk for models."""
    in_a_cache(demo_bundle, tmp_path / "disk")
    (tmp_path / "hub").symlink_to(tmp_path / "disk")
    return tmp_path / "hub" / "models--someone--bundle" / "snapshots" / "0123abcd"


def test_a_bundle_in_a_cache_is_read_whole(cached: Path, demo_bundle: Path) -> None:
    found = load_model(Bundle.open(cached).transformer)
    assert found == onnx.load(demo_bundle / "transformer" / "model.onnx")


def test_a_bundle_in_a_cache_is_verified_and_converted(cached: Path, tmp_path: Path) -> None:
    from fp4dit_onnx.targets import convert, target_by_name
    from fp4dit_onnx.verification.verify import verify

    assert verify(cached, quick=True).ok
    made = convert(cached, tmp_path / "inlined", target_by_name("inline")).bundle
    assert not any(path.is_symlink() for path in made.rglob("*"))


def replaced(bundle: Path, name: str, target: Path) -> Path:
    """A copy of which one file is a link, listed as what it leads to."""
    folder = bundle.parent / f"copy of {bundle.name}"
    shutil.copytree(bundle, folder)
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    manifest = json.loads((folder / "quantization.json").read_text())
    manifest["files"][name]["bytes"] = target.stat().st_size
    (folder / "quantization.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def copy(demo_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


@pytest.mark.parametrize(
    "name", ["scheduler/scheduler_config.json", "transformer/model.onnx.data"]
)
def test_a_link_to_a_private_file_is_refused(copy: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("a key")
    with pytest.raises(BundleError, match=rf"{name} is a link to .*secret, outside .*cp -rL"):
        Bundle.open(replaced(copy, name, tmp_path / "secret"))


def test_a_folder_that_is_a_link_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "tokenizer").rename(tmp_path / "elsewhere")
    (copy / "tokenizer").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"tokenizer\.json is a link to .*elsewhere"):
        Bundle.open(copy)


def test_links_that_stay_in_the_bundle_are_followed(copy: Path) -> None:
    (copy / "model_index.json").rename(copy / "index")
    (copy / "model_index.json").symlink_to("index")
    assert Bundle.open(copy).model_index.read_bytes()


def test_blobs_of_another_model_and_loops(cached: Path, tmp_path: Path) -> None:
    other = tmp_path / "disk" / "models--other--gated" / "blobs" / "secret"
    other.parent.mkdir(parents=True)
    other.write_text("a key")
    for name, target in {
        "link": other,
        "loop": Path("loop"),
        "deep": Path("../../blobs/a/../.."),
    }.items():
        (cached / name).symlink_to(target)
    assert followed(cached / "loop", cached).name == "loop"
    for name in ("link", "deep"):
        with pytest.raises(BundleError, match=rf"{name} is a link to"):
            followed(cached / name, cached)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "/etc/passwd"}, "lies in '/etc/passwd'"),
        ({"location": "../outside"}, r"lies in '\.\./outside'"),
        ({"location": ""}, r"lies in '\.'"),
        ({"location": "link"}, "link is a link to"),
        ({"location": "absent"}, "absent not found"),
        ({"offset": "13"}, "4 bytes from 13 on, expected within the 16"),
        ({"length": "17"}, "17 bytes from 0 on"),
        ({"offset": "-4"}, "offset '-4'"),
        ({"length": "9" * 5000}, "length '99999"),
    ],
)
def test_places_of_tensors_that_are_refused(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside").write_bytes(bytes(16))
    (folder / "data").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "link").symlink_to("../outside")

    def tensor(**places: Any) -> onnx.TensorProto:
        made = onnx.TensorProto(name="w", dims=[1], data_type=onnx.TensorProto.FLOAT)
        made.data_location = onnx.TensorProto.EXTERNAL
        for key, value in places.items():
            made.external_data.add(key=key, value=value)
        return made

    right = {"location": "data", "offset": "8", "length": "4"}
    good = tensor(**right)
    load_tensor(good, folder)
    assert onnx.numpy_helper.to_array(good).tolist() == [2]
    wrong = {"location": "data", "offset": "0", "length": "4", **changes}
    with pytest.raises(BundleError, match=message):
        load_tensor(tensor(**wrong), folder)


def test_netron_gets_the_model_and_no_other_file(cached: Path, tmp_path: Path) -> None:
    pytest.importorskip("netron")
    from fp4dit_onnx.serve.viewing import netron_server, onnx_file

    model = onnx_file(cached, "transformer")
    (tmp_path / "secret").write_text("a key")
    (model.parent / "model.onnx.private").symlink_to(tmp_path / "secret")
    with netron_server(model, "127.0.0.1", 0) as server:
        served = sorted(url for url in server.files if url.startswith("/data/"))
    assert served == ["/data/model.onnx", "/data/model.onnx.data"]
