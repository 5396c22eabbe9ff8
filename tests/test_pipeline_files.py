"""The pipeline's bundle: files that are missing or damaged, and that no torch is needed."""

from __future__ import annotations

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
        ("model_index.json", '{"_class_name": "SanaPipeline"}', UsageError, "SanaPipeline"),
        ("quantization.json", "{}", BundleError, "lacks sampling.steps"),
        ("quantization.json", '{"sampling": {"steps": 1}}', BundleError, "sampling.guidance"),
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
