"""The pipeline's bundle: files that are missing or damaged, and that no torch is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.runtime import Pipeline

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties' deprecations at import
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")


def damaged(bundle: Path, tmp_path: Path, name: str, content: str | None) -> Path:
    """A bundle of links to `bundle`, with file `name` replaced, or absent if `content` is None."""
    for path in bundle.rglob("*"):
        target = tmp_path / path.relative_to(bundle)
        if path.is_dir():
            target.mkdir()
        elif str(path.relative_to(bundle)) != name:
            target.symlink_to(path)
    if content is not None:
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("model_index.json", None, BundleError, "not found"),
        ("model_index.json", '{"_class_name": "OmniGenPipeline"}', UsageError, "OmniGen"),
        ("quantization.json", "{}", BundleError, "has format_version null"),
        ("quantization.json", '{"format_version": 1}', BundleError, "recipe is absent"),
        ("quantization.json", "[1", BundleError, "is not JSON"),
        ("quantization.json", "[1]", BundleError, "holds a JSON list"),
        ("transformer/model.onnx", None, BundleError, "does not exist"),
        ("transformer/model.onnx", "nonsense", BundleError, "cannot load"),
        ("vae_decoder/config.json", None, BundleError, "not found"),
        ("scheduler/scheduler_config.json", "{}", UsageError, "scheduler None"),
    ],
)
def test_damaged_bundles(
    bundle: Path, tmp_path: Path, name: str, content: str | None, error: Any, message: str
) -> None:
    folder = damaged(bundle, tmp_path, name, content)
    with pytest.raises(error, match=message) as caught:
        Pipeline(folder, library=False)
    assert name.split("/")[0] in str(caught.value) or name.startswith("scheduler")


def test_a_transformer_alone_draws_nothing(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle", symlinks=True)
    for name in ("text_encoder", "vae_decoder"):
        shutil.rmtree(tmp_path / "bundle" / name)
    with pytest.raises(UsageError, match=r"no text_encoder and no vae_decoder.*load_transformer"):
        Pipeline(tmp_path / "bundle", library=False)


def test_generating_loads_no_torch(bundle: Path, tmp_path: Path) -> None:
    code = f"""
import sys
for name in ("torch", "diffusers", "transformers", "onnx"):
    sys.modules[name] = None  # importing it fails
import pathlib
from fp4dit_onnx.runtime import Pipeline
(picture,) = Pipeline(pathlib.Path({str(bundle)!r}), library=False).generate(["cat"], steps=2)
picture.save({str(tmp_path / "cat.png")!r})
"""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "cat.png") as picture:
        assert picture.size == (64, 64)


def test_settings_from_windows_are_the_same(bundle: Path, tmp_path: Path) -> None:
    """Every JSON file with a byte order mark and CRLF, as Notepad saves it."""
    for path in bundle.rglob("*"):
        target = tmp_path / path.relative_to(bundle)
        if path.is_dir():
            target.mkdir()
        elif path.suffix == ".json":
            target.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        else:
            target.symlink_to(path)
    ours, theirs = (Pipeline(folder, library=False) for folder in (tmp_path, bundle))
    assert ours.defaults == theirs.defaults
    assert [row.tolist() for row in ours.tokenizer(["red apple"], 8)] == [
        row.tolist() for row in theirs.tokenizer(["red apple"], 8)
    ]


def test_pictures_that_memory_does_not_hold(bundle: Path) -> None:
    pipeline = Pipeline(bundle, library=False)
    for size in (2**40, 2**20):
        with pytest.raises(
            UsageError, match=r"decoding takes more than \d+ bytes, and \d+ are free"
        ):
            pipeline.generate(["red apple"], height=size, width=size)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "tokenizer/tokenizer_config.json",
            {"padding_side": 5},
            "padding_side is 5, expected left",
        ),
        ("tokenizer/tokenizer_config.json", {"pad_token": [1]}, "pad_token is a list, expected a"),
        (
            "vae_decoder/config.json",
            {"scaling_factor": 0},
            "scaling_factor is 0.0, expected a number",
        ),
        (
            "vae_decoder/config.json",
            {"block_out_channels": []},
            "block_out_channels is not a list",
        ),
        (
            "transformer/config.json",
            {"in_channels": None},
            "in_channels is null, expected a whole",
        ),
        (
            "transformer/config.json",
            {"patch_size": 2**40},
            "patch_size is 1099511627776, expected",
        ),
    ],
)
def test_values_that_are_refused(
    bundle: Path, tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    path = bundle / name
    content = json.loads(path.read_text()) if path.is_file() else {}
    folder = damaged(bundle, tmp_path, name, json.dumps(content | change))
    with pytest.raises(BundleError, match=message) as caught:
        Pipeline(folder, library=False)
    assert Path(name).name in str(caught.value)
