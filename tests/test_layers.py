"""Layers: each is imported in a process where what it may not use cannot be imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

TORCH = ("torch", "diffusers", "transformers")
ONNX = ("onnx", "onnx_graphsurgeon", "onnxruntime", "onnxscript")

LAYERS = {
    "fp4dit_onnx.errors": (*TORCH, *ONNX, "numpy"),
    "fp4dit_onnx.numbers.formats": (*TORCH, *ONNX, "safetensors", "PIL", "tokenizers"),
    "fp4dit_onnx.numbers.numerics": (*TORCH, *ONNX, "safetensors", "PIL", "tokenizers"),
    "fp4dit_onnx.spec.recipe": (*TORCH, *ONNX),
    "fp4dit_onnx.spec.state": (*TORCH, *ONNX),
    "fp4dit_onnx.checkpoint.checkpoint": (*TORCH, *ONNX),
    "fp4dit_onnx.families": (*TORCH, *ONNX),
    "fp4dit_onnx.bundle.bundle": (*TORCH, *ONNX),
    "fp4dit_onnx.report.inspection": TORCH,
    "fp4dit_onnx.doctor": (*TORCH, *ONNX),
    "fp4dit_onnx.cli": (*TORCH, *ONNX, "numpy"),
    "fp4dit_onnx.commands.generate": (*TORCH, *ONNX),
    "fp4dit_onnx.runtime": (*TORCH, *ONNX),
    "fp4dit_onnx.calibration": ONNX,
    "fp4dit_onnx.passes": TORCH,
}
"""Module or package (with all its modules) -> what it does without."""

CODE = """
import importlib, pkgutil, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        blocked = name.partition(".")[0] in {blocked!r}
        return None if blocked else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
module = importlib.import_module({name!r})
for info in pkgutil.walk_packages(getattr(module, "__path__", ()), {name!r} + "."):
    importlib.import_module(info.name)
"""


def imports_without(name: str, blocked: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    code = CODE.format(name=name, blocked=set(blocked))
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_does_without(name: str) -> None:
    done = imports_without(name, LAYERS[name])
    assert done.returncode == 0, done.stderr


def test_the_test_can_fail() -> None:
    assert "No module named 'onnx'" in imports_without("fp4dit_onnx.ops", ONNX).stderr
    assert "No module named 'torch'" in imports_without("fp4dit_onnx.calibration", TORCH).stderr
