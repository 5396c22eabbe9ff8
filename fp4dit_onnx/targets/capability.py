"""Which target the runtimes on this machine can load: tried with a model of one linear.

Each runtime is tried in its own process, ``python -m fp4dit_onnx.targets.capability RUNTIME
FOLDER``: loading a native library that does not fit may end the process.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from fp4dit_onnx.files import GIVEN, append_text, parse_json
from fp4dit_onnx.numbers.scale_formats import NVFP4_BLOCK
from fp4dit_onnx.system.outputs import scratch_folder
from fp4dit_onnx.targets.table import TARGETS
from fp4dit_onnx.targets.tiny_model import tiny_linear

__all__ = ["RUNTIMES", "capabilities"]

RESULTS = ".jsonl"
SECONDS = 120
"""After which a runtime counts as one that hangs."""
NO_DEVICE = ("CPUExecutionProvider", "AzureExecutionProvider")
"""Execution providers that are no device of their own."""

Loads = Iterator[tuple[str, Callable[[str], Any]]]


def _onnxruntime() -> Loads:
    """ONNX Runtime's CPU provider, and each other one where it takes the whole model."""
    import onnxruntime

    def load(path: str, provider: str, alone: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.disable_cpu_ep_fallback", alone)
        onnxruntime.InferenceSession(path, options, providers=[provider])

    yield "onnxruntime", partial(load, provider="CPUExecutionProvider", alone="0")
    for name in onnxruntime.get_available_providers():
        if name not in NO_DEVICE:
            yield f"onnxruntime {name}", partial(load, provider=name, alone="1")


def _openvino() -> Loads:
    core = importlib.import_module("openvino").Core()
    yield "openvino", lambda path: core.compile_model(core.read_model(path), "CPU")


def _tensorrt() -> Loads:
    tensorrt = importlib.import_module("tensorrt")
    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    typed = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)

    def load(path: str) -> None:
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = tensorrt.OnnxParser(network, builder.logger)
        if not parser.parse_from_file(path):
            raise RuntimeError(str(parser.get_error(0)))
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        profile.set_shape("x", *[(rows, 32) for rows in (1, 4, 8)])
        config.add_optimization_profile(profile)
        if builder.build_serialized_network(network, config) is None:
            raise RuntimeError("it parses the model and builds no engine for this GPU")

    yield "tensorrt", load


RUNTIMES: Mapping[str, Callable[[], Loads]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
}
"""Module name -> what it runs on, and a function that loads a model file, or raises. Without our
library."""


def capabilities() -> dict[str, dict[str, str]]:
    """Runtime -> target -> why it does not load, empty where it does; installed runtimes only."""
    linear = tiny_linear(NVFP4_BLOCK)
    with scratch_folder() as folder:
        for name, target in TARGETS.items():
            onnx.save_model(target.linear(linear), Path(folder) / f"{name}.onnx")
        found: dict[str, dict[str, str]] = {}
        for runtime in RUNTIMES:
            found |= _in_a_process(runtime, Path(folder))
    return found


def _in_a_process(runtime: str, folder: Path) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-m", __name__, runtime, str(folder)]
    ended = ""
    try:
        done = subprocess.run(  # in `folder`: a checkout is not to be taken for the package
            command, capture_output=True, timeout=SECONDS, check=False, cwd=folder
        )
        if done.returncode:
            ended = f"its process ended with exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        ended = f"it did not answer in {SECONDS} s"
    results = folder / f"{runtime}{RESULTS}"
    lines = results.read_bytes().splitlines() if results.exists() else []
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        name, target, reason = parse_json(line, str(results), "what loads", GIVEN)
        found.setdefault(name, {})[target] = reason
    if ended:
        last = next(reversed(found), runtime)
        found[last] = dict.fromkeys(_models(folder), ended) | found.get(last, {})
    return found


def _models(folder: Path) -> dict[str, Path]:
    """Target -> the model to try."""
    return {path.stem: path for path in sorted(folder.glob("*.onnx"))}


def _reason(load: Callable[..., Any], *arguments: str) -> str:
    """Why a call fails, the last line of it, which is the cause; empty where it does not."""
    try:
        load(*arguments)
    except Exception as error:  # every runtime has its own
        return (str(error).strip() or type(error).__name__).splitlines()[-1].strip("- ")
    return ""


def _main(runtime: str, folder: Path) -> None:
    """Note [runtime, target, reason] as a line of JSON for each; nothing where it is absent."""
    if importlib.util.find_spec(runtime) is None:
        return
    results = folder / f"{runtime}{RESULTS}"
    loads: list[tuple[str, Callable[[str], Any] | None]] = []
    failed = _reason(lambda: loads.extend(RUNTIMES[runtime]()))
    for name, load in loads or [(runtime, None)]:
        for target, path in _models(folder).items():
            reason = _reason(load, str(path)) if load else failed
            append_text(results, json.dumps([name, target, reason]) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
