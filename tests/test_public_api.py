"""The package's public names: listed, lazy, and unharmed by submodules of the same name."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import fp4dit_onnx
from fp4dit_onnx import errors


def in_fresh_process(code: str) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_is_sorted_and_lists_every_error() -> None:
    assert fp4dit_onnx.__all__ == sorted(fp4dit_onnx.__all__)
    assert set(errors.__all__) <= set(fp4dit_onnx.__all__)


def test_every_listed_name_exists_and_nothing_else_is_public() -> None:
    code = """
import fp4dit_onnx, types
assert dir(fp4dit_onnx) == sorted(fp4dit_onnx.__all__)
for name in fp4dit_onnx.__all__:
    assert getattr(fp4dit_onnx, name) is not None, name
public = {n for n, v in vars(fp4dit_onnx).items()
          if not n.startswith('_') and not isinstance(v, types.ModuleType)}
plumbing = {'Any', 'ModuleType', 'Path', 'TYPE_CHECKING', 'annotations'}
assert public - plumbing <= set(fp4dit_onnx.__all__), public
"""
    in_fresh_process(code)


def test_import_is_light() -> None:
    in_fresh_process(
        "import sys, fp4dit_onnx\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'diffusers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


@pytest.mark.parametrize(
    "first", ["import fp4dit_onnx.export", "from fp4dit_onnx.export import plan", "pass"]
)
def test_export_stays_a_function(first: str) -> None:
    in_fresh_process(
        f"{first}\n"
        "import fp4dit_onnx\n"
        "assert fp4dit_onnx.export.__module__ == 'fp4dit_onnx', fp4dit_onnx.export\n"
        "from fp4dit_onnx.export import ExportRequest"
    )


def test_version_is_that_of_the_distribution() -> None:
    assert fp4dit_onnx.__version__ == importlib.metadata.version("fp4dit-onnx")


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fp4dit_onnx.nothing  # noqa: B018


def test_export_names_unknown_options() -> None:
    with pytest.raises(fp4dit_onnx.UsageError, match=r"'bit': expected one of .*bits"):
        fp4dit_onnx.export(output="x", bit="w4a6")
    with pytest.raises(fp4dit_onnx.UsageError, match="output=DIR"):
        fp4dit_onnx.export()


def test_export_takes_text_paths(tmp_path: Path) -> None:
    with pytest.raises(fp4dit_onnx.CheckpointError, match="not found"):
        fp4dit_onnx.export(str(tmp_path / "absent"), str(tmp_path / "out"))
