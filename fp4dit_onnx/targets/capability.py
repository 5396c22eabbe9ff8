"""Which target the runtimes on this machine can load: tried with a model of one linear."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Callable, Mapping

import onnx

from fp4dit_onnx.targets.inline import INLINE, inline
from fp4dit_onnx.targets.standard import STANDARD, standard
from fp4dit_onnx.targets.target import DEFAULT_TARGET

__all__ = ["RUNTIMES", "capabilities"]


def _onnxruntime(model: bytes) -> None:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _openvino(model: bytes) -> None:
    core = importlib.import_module("openvino").Core()
    core.compile_model(core.read_model(io.BytesIO(model)), "CPU")


def _tensorrt(model: bytes) -> None:
    tensorrt = importlib.import_module("tensorrt")
    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    parser = tensorrt.OnnxParser(builder.create_network(0), builder.logger)
    if not parser.parse(model):
        raise RuntimeError(str(parser.get_error(0)))


RUNTIMES: Mapping[str, Callable[[bytes], None]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
}
"""Module name -> loads a serialized model, or raises. Without our library."""


def capabilities(linear: onnx.ModelProto) -> dict[str, dict[str, str]]:
    """Runtime -> target -> why it does not load, empty where it does; installed runtimes only.

    Args:
        linear: a small quantized model with its function bodies.
    """
    models = {
        DEFAULT_TARGET: linear,
        INLINE.name: inline(linear),
        STANDARD.name: standard(linear, {linear.graph.input[0].name: 1.0}),
    }
    installed = {r: load for r, load in RUNTIMES.items() if importlib.util.find_spec(r)}
    return {
        runtime: {name: _reason(load, model) for name, model in models.items()}
        for runtime, load in installed.items()
    }


def _reason(load: Callable[[bytes], None], model: onnx.ModelProto) -> str:
    try:
        load(model.SerializeToString())
    except Exception as error:  # every runtime has its own
        text = str(error).strip() or type(error).__name__
        return text.splitlines()[0]
    return ""
