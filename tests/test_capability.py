"""Which target a runtime loads, told by its own process; runtimes that fail in many ways."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from fp4dit_onnx.doctor import CHECKS
from fp4dit_onnx.targets import capability
from fp4dit_onnx.targets.capability import capabilities

TARGETS = ("fp4dit", "inline", "standard", "nbits", "nbits-half")


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module tensorrt that only the tried process finds; the others are left out."""
    file = tmp_path / "tensorrt.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(capability, "RUNTIMES", {"tensorrt": capability.RUNTIMES["tensorrt"]})
    return file


def test_onnxruntime_tells_targets_apart() -> None:
    found = capabilities()["onnxruntime"]
    assert (found["fp4dit"], found["inline"]) == ("", "")
    assert "DequantizeLinear" in found["standard"]


def test_openvino_tells_targets_apart() -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed: pip install openvino")
    found = capabilities()["openvino"]
    assert (found["inline"], found["standard"]) == ("", "")
    assert "com.fp4dit.FpLinear" in found["fp4dit"]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import os; os.abort()", "its process ended with exit code -6"),
        ("raise OSError('libcuda.so.1 not found')", "libcuda.so.1 not found"),
        ("raise RuntimeError('first\\n\\n- the cause')", "the cause"),
        ("print('noise'); raise ValueError", "ValueError"),
        ("import time; time.sleep(60)", "it did not answer in 5 s"),
    ],
)
def test_a_runtime_that_fails(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, module: str, reason: str
) -> None:
    if "sleep" in module:
        monkeypatch.setattr(capability, "SECONDS", 5)
    runtime.write_text(module)
    assert capabilities() == {"tensorrt": dict.fromkeys(TARGETS, reason)}


TENSORRT = """
import onnx

class Logger:
    ERROR = 0
    def __init__(self, level): pass

class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1

class Profile:
    def set_shape(self, name, *shapes): assert (name, len(shapes)) == ("x", 3)

class Config:
    def add_optimization_profile(self, profile): pass

class Builder:
    def __init__(self, logger): self.logger = logger
    def create_network(self, flags):
        assert flags == 2
        return {}
    def create_builder_config(self): return Config()
    def create_optimization_profile(self): return Profile()
    def build_serialized_network(self, network, config):
        return None if network["opset"] == 23 else b"engine"

class OnnxParser:
    def __init__(self, network, logger): self.network = network
    def parse_from_file(self, path):
        model = onnx.load(path)
        self.network["opset"] = model.opset_import[0].version
        return not model.functions
    def get_error(self, index): return "no local functions"
"""


def test_tensorrt_is_parsed_and_built(runtime: Path) -> None:
    """With a stand-in of its Python interface: no machine of ours has it."""
    runtime.write_text(TENSORRT)
    assert capabilities()["tensorrt"] == {
        "fp4dit": "no local functions",
        "inline": "",
        "standard": "it parses the model and builds no engine for this GPU",
        "nbits": "",
        "nbits-half": "",
    }


ONNXRUNTIME = """
class SessionOptions:
    def add_session_config_entry(self, name, value): self.alone = value

class InferenceSession:
    def __init__(self, path, options, providers):
        if providers == ["NpuExecutionProvider"]:
            assert options.alone == "1"
            raise RuntimeError("some nodes fell back")

def get_available_providers():
    return ["NpuExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]
"""


def test_a_provider_counts_where_it_takes_the_whole_model(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capability, "RUNTIMES", {"onnxruntime": None})
    runtime.with_name("onnxruntime.py").write_text(ONNXRUNTIME)
    assert capabilities() == {
        "onnxruntime": dict.fromkeys(TARGETS, ""),
        "onnxruntime NpuExecutionProvider": dict.fromkeys(TARGETS, "some nodes fell back"),
    }


def test_an_absent_runtime_is_left_out(runtime: Path) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed")
    assert not runtime.exists()
    assert capabilities() == {}


def test_doctor_shows_it() -> None:
    finding = CHECKS["targets"]("targets")
    assert finding.ok
    assert not finding.needed
    assert "onnxruntime: fp4dit, inline" in finding.found
