"""What OpenVINO computes; it is imported when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fp4dit_onnx.benchmark.backend import Absent, Loaded, package
from fp4dit_onnx.benchmark.case import Array

__all__ = ["INT8", "OpenVinoSession", "int8_model", "linear_f32", "linear_u4", "onnx_model"]

PRECISION = "INFERENCE_PRECISION_HINT"
DYNAMIC_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
INT8, INT8_GROUP = "int8", 128
TINY = np.float32(2.0**-90)
"""A scale below this is of weights that are all zero."""


def linear_f32(x: Array, weight: Array, bias: Array, threads: int, precision: str) -> Loaded:
    """Linear of x [M, K], weight [N, K], bias [N], computed in `precision`: ``f32`` or ``bf16``."""
    nodes = package("openvino").opset13
    return _linear(x, nodes.constant(weight), bias, threads, {PRECISION: precision})


def linear_u4(
    x: Array, weight: Array, bias: Array, threads: int, group: int, dynamic_group: int | None
) -> Loaded:
    """The same with weights in 4 bits, a scale and a zero point for each `group` of inputs.

    The group divides K. Activations are quantized in groups of `dynamic_group`; None leaves that to
    OpenVINO.
    """
    ov = package("openvino")
    nodes, (n, k) = ov.opset13, weight.shape
    grouped = weight.reshape(n, k // group, group)  # [N, K] -> [N, G, group]
    low, high = grouped.min(-1, keepdims=True), grouped.max(-1, keepdims=True)
    scale = np.maximum((high - low) / np.float32(15), np.float32(2.0**-14)).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, 15)
    codes = np.clip(np.rint(grouped / scale) + zero, 0, 15)
    integers = [nodes.convert(_u4(ov, value), "f16") for value in (codes, zero)]
    value = nodes.multiply(nodes.subtract(*integers), nodes.constant(scale.astype(np.float16)))
    whole = nodes.reshape(value, nodes.constant(np.array([n, k])), special_zero=False)
    settings = {} if dynamic_group is None else {DYNAMIC_GROUP: dynamic_group}
    return _linear(x, nodes.convert(whole, "f32"), bias, threads, settings)


def onnx_model(path: Path, feed: Mapping[str, Array], threads: int, precision: str) -> Loaded:
    """The ONNX model at `path` at the sizes of `feed`, computed in `precision`."""
    ov = package("openvino")
    model = ov.Core().read_model(str(path))
    names = {name for port in model.inputs for name in port.get_names()}
    own = {name: value for name, value in feed.items() if name in names}
    model.reshape({name: list(value.shape) for name, value in own.items()})
    return _compiled(ov, model, own, threads, {PRECISION: precision})


def _u4(ov: Any, values: Array) -> Any:
    """A constant of 4-bit integers, two per byte, the first in the low nibble."""
    flat = values.astype(np.uint8).reshape(-1)
    flat = np.pad(flat, (0, flat.size % 2))
    packed = np.ascontiguousarray(flat[0::2] | (flat[1::2] << np.uint8(4)))
    tensor = ov.Tensor(packed, ov.Shape(list(values.shape)), ov.Type.u4)
    return ov.opset13.constant(tensor, shared_memory=False)  # the tensor does not own `packed`


def _linear(
    x: Array, weight: Any, bias: Array, threads: int, settings: Mapping[str, Any]
) -> Loaded:
    ov = package("openvino")
    nodes = ov.opset13
    parameter = nodes.parameter(list(x.shape), np.float32)
    parameter.output(0).set_names({"x"})
    product = nodes.matmul(parameter, weight, False, True)
    model = ov.Model([nodes.add(product, nodes.constant(bias))], [parameter], "linear")
    return _compiled(ov, model, {"x": x}, threads, settings)


@dataclass(frozen=True)
class Port:
    """An input or output of a model; axes of any size have the name ``?``."""

    name: str
    shape: tuple[int | str, ...]


class OpenVinoSession:
    """An ONNX model as a `runtime.session.Session`, computed by OpenVINO.

    It is compiled for the sizes of the first call, and anew for others.

    Args:
        path: of the model.
        threads: how many.
        precision: ``f32``, ``bf16``, or ``int8``: activations of linear layers whose weights are
            int8, see `int8_model`, are quantized at run time in groups of `INT8_GROUP`.
        compiling: entered while it compiles.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        precision: str,
        compiling: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._ov = package("openvino")
        self._model = self._ov.Core().read_model(str(path))
        self._threads, self._settings = threads, {PRECISION: precision}
        if precision == INT8:
            self._settings = {PRECISION: "f32", DYNAMIC_GROUP: str(INT8_GROUP)}
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._compiling = compiling

    def get_inputs(self) -> list[Port]:
        """See `Session`."""
        return [_port(port) for port in self._model.inputs]

    def get_outputs(self) -> list[Port]:
        """See `Session`."""
        return [_port(port) for port in self._model.outputs]

    def _compile(self, sizes: Mapping[str, tuple[int, ...]]) -> None:
        """Make it ready for inputs of these sizes."""
        with self._compiling():
            self._model.reshape({name: list(shape) for name, shape in sizes.items()})
            self._request = _request(self._ov, self._model, self._threads, self._settings)
            self._sizes = dict(sizes)

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Array]:
        """See `Session`."""
        sizes = {name: np.shape(value) for name, value in feed.items()}
        if sizes != self._sizes:
            self._compile(sizes)
        found = self._request.infer({name: np.asarray(value) for name, value in feed.items()})
        return [np.array(found[name]) for name in outputs or [p.name for p in self.get_outputs()]]


def int8_model(source: Path, target: Path) -> None:
    """Write the ONNX model `source` as OpenVINO's `target`, linear layers' weights [N, K] in int8.

    Each output has a scale.
    """
    ov = package("openvino")
    model, nodes = ov.Core().read_model(str(source)), ov.opset13
    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul":
            continue
        stored = product.input_value(1).get_node()
        if stored.get_type_name() == "Transpose":
            stored = stored.input_value(0).get_node()
        if stored.get_type_name() != "Constant" or len(stored.shape) != 2:
            continue
        weight = np.array(stored.data, np.float32)
        scale = np.maximum(np.abs(weight).max(-1, keepdims=True) / np.float32(127), TINY)
        codes = nodes.constant(np.rint(weight / scale).astype(np.int8))
        value = nodes.multiply(nodes.convert(codes, "f32"), nodes.constant(scale))
        stored.output(0).replace(value.output(0))
    ov.save_model(model, str(target), compress_to_fp16=False)


def _port(port: Any) -> Port:
    shape = tuple(d.get_length() if d.is_static else "?" for d in port.partial_shape)
    return Port(port.get_any_name(), shape)


def _compiled(
    ov: Any, model: Any, feed: Mapping[str, Array], threads: int, settings: Mapping[str, Any]
) -> Loaded:
    request = _request(ov, model, threads, settings)
    held = {
        name: ov.Tensor(np.ascontiguousarray(value), shared_memory=True)
        for name, value in feed.items()
    }
    for name, tensor in held.items():
        request.set_tensor(name, tensor)

    def run() -> None:  # infer() would copy the result out
        request.start_async()
        request.wait()

    return Loaded(run, lambda: np.array(request.get_output_tensor(0).data))


def _request(ov: Any, model: Any, threads: int, settings: Mapping[str, Any]) -> Any:
    """What runs `model` on the CPU."""
    core = ov.Core()
    wanted = settings.get(PRECISION)
    if wanted == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Absent("OpenVINO computes bf16 with instructions that this CPU lacks")
    common = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    return core.compile_model(model, "CPU", {**common, **settings}).create_infer_request()
