"""The package's public names: listed, lazy, and unharmed by submodules of the same name."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import fp4dit_onnx
import fp4dit_onnx.commands.export as command_module
from fp4dit_onnx import errors
from fp4dit_onnx.commands.parameters import parameters_of, request_of
from fp4dit_onnx.exporting.request import ExportRequest


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
plumbing = {'Any', 'ModuleType', 'TYPE_CHECKING', 'annotations'}
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
    "first",
    [
        "import fp4dit_onnx.exporting.export",
        "from fp4dit_onnx.exporting.export import plan",
        "pass",
    ],
)
def test_export_stays_a_function(first: str) -> None:
    in_fresh_process(
        f"{first}\n"
        "import fp4dit_onnx\n"
        "assert callable(fp4dit_onnx.export), fp4dit_onnx.export\n"
        "from fp4dit_onnx.exporting.export import ExportRequest"
    )


def test_version_is_that_of_the_distribution() -> None:
    assert fp4dit_onnx.__version__ == importlib.metadata.version("fp4dit-onnx")


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fp4dit_onnx.nothing  # noqa: B018


def test_export_the_command_and_the_request_agree() -> None:
    """Name by name, default by default; the command has three options more and units of its own."""
    command = {p.name: p.default for p in parameters_of(command_module.run)}
    for name in ("inline", "dry_run", "json"):
        del command[name]
    called = {n: p.default for n, p in inspect.signature(fp4dit_onnx.export).parameters.items()}
    del called["reporter"]
    request = {field.name: field.default for field in fields(ExportRequest)}
    assert called == {**request, "output": None}
    memory = {name: request[name] / 2**30 for name in ("max_ram", "max_vram")}
    changed = {"output": None, "rules": None, "lora": None, "lora_layers": None, **memory}
    assert command == {**request, **changed}
    assert request_of(ExportRequest, {**command, "output": Path("x")}) == ExportRequest(Path("x"))


def test_help_of_export_describes_every_option() -> None:
    names = re.findall(r"^    (\w+): ", inspect.getdoc(fp4dit_onnx.export) or "", re.M)
    parameters = list(inspect.signature(fp4dit_onnx.export).parameters)
    assert names == [*parameters, "UsageError", "MissingExtraError"]


def test_export_gives_every_option_on(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {
        name: "text" if "str" in str(p.annotation) else 7
        for name, p in inspect.signature(fp4dit_onnx.export).parameters.items()
    }
    seen = []
    module = importlib.import_module("fp4dit_onnx.exporting.export")
    monkeypatch.setattr(module, "export", lambda request, reporter: seen.append(request))
    several = {"rules": ["a=e2m1"], "lora": ["file:0.5"], "lora_layers": ["*.attn1.*"]}
    fp4dit_onnx.export(**{**values, **several})
    (request,) = seen
    for field in fields(ExportRequest):
        found = getattr(request, field.name)
        wanted = {**values, **{name: tuple(v) for name, v in several.items()}}[field.name]
        assert (str(found) if isinstance(found, Path) else found) == wanted


def test_export_refuses_unknown_options_and_no_output() -> None:
    with pytest.raises(TypeError, match="'bit'"):
        fp4dit_onnx.export(output="x", bit="w4a6")  # type: ignore[call-arg]
    with pytest.raises(fp4dit_onnx.UsageError, match="output=DIR"):
        fp4dit_onnx.export()


def test_export_takes_text_paths(tmp_path: Path) -> None:
    with pytest.raises(fp4dit_onnx.CheckpointError, match="not found"):
        fp4dit_onnx.export(str(tmp_path / "absent"), str(tmp_path / "out"))
