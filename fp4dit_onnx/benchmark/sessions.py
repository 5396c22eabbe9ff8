"""ONNX Runtime as every backend uses it: the same threads, inputs and outputs bound beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fp4dit_onnx import ops
from fp4dit_onnx.benchmark.backend import Backend, Loaded, package
from fp4dit_onnx.benchmark.case import Array
from fp4dit_onnx.runtime.library import library_path, select_isa
from fp4dit_onnx.runtime.providers import ON_CPU, Placement
from fp4dit_onnx.runtime.session import started, with_library
from fp4dit_onnx.system.devices import CPU
from fp4dit_onnx.system.resources import checked_threads

__all__ = ["MICROSOFT", "bound", "graph_model", "make_session", "on_onnxruntime", "running_on"]

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_STOP_SPINNING = "session.force_spinning_stop"
"""Threads spin within a run, as by default, and stop with it: they leave the cores to the next one.
A model of one operator therefore pays for waking them at every call, ours and ONNX Runtime's alike."""
_SPINNING = "session.intra_op.allow_spinning"
_ERRORS_ONLY = 4


class _Fed(Protocol):
    @property
    def feed(self) -> Mapping[str, Array]: ...


FedT = TypeVar("FedT", bound=_Fed)


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    feed: Mapping[str, Array],
    constants: Mapping[str, Array],
    output_shape: Sequence[int],
    opset: int = ops.OPSET,
) -> bytes:
    """A model from the inputs `feed` to the float output ``y``, serialized."""

    def declared(name: str, value: Array) -> onnx.ValueInfoProto:
        element = helper.np_dtype_to_tensor_dtype(value.dtype)
        return helper.make_tensor_value_info(name, element, value.shape)

    graph = helper.make_graph(
        list(nodes),
        "benchmark",
        [declared(name, value) for name, value in feed.items()],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in constants.items()],
    )
    versions = {"": opset, ops.DOMAIN: ops.VERSION, MICROSOFT: 1}
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ops.IR_VERSION)
    ops.attach_functions(model)
    return bytes(model.SerializeToString())


def make_session(
    model: bytes | Path,
    threads: int,
    *,
    isa: str | None = None,
    configure: Callable[[Any], None] | None = None,
) -> Any:
    """A session on `threads` threads, on the device of `running_on`.

    Args:
        model: serialized, or a file with external data beside it.
        threads: of one operator.
        isa: register the custom-op library with these kernels, on another device than the CPU if it
            has some for it; None leaves it out.
        configure: changes the session options further.
    """
    ort = package("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = checked_threads(threads)
    options.add_session_config_entry(_STOP_SPINNING, "1")
    if configure is not None:
        configure(options)
    source = model if isinstance(model, bytes) else str(model)
    placed, spinning = _CONDITIONS.get().placed, _CONDITIONS.get().spinning
    options.add_session_config_entry(_SPINNING, str(int(spinning)))
    if isa is not None or not placed.on_cpu:  # peers run by their defaults
        options.enable_mem_pattern = placed.mem_pattern
    if isa is not None and with_library(placed, None):
        options.register_custom_ops_library(str(library_path()))
    if isa is None or not placed.on_cpu:
        return started(source, options, placed)
    select_isa(isa)
    try:  # nodes choose their kernels when they are created
        return started(source, options, placed)
    finally:
        select_isa(None)


@dataclass(frozen=True)
class _Conditions:
    placed: Placement = ON_CPU
    spinning: bool = True


_USUAL = _Conditions()
_CONDITIONS: ContextVar[_Conditions] = ContextVar("conditions", default=_USUAL)


@contextmanager
def running_on(placed: Placement, *, spinning: bool = True) -> Iterator[None]:
    """While open, `make_session` makes sessions for that device, and `bound` binds to its memory.

    Args:
        placed: the device.
        spinning: whether threads of a session wait busily for the next task within a run.
    """
    token = _CONDITIONS.set(_Conditions(placed, spinning))
    try:
        yield
    finally:
        _CONDITIONS.reset(token)


def bound(session: Any, feed: Mapping[str, Array]) -> Loaded:
    """`session` on the inputs `feed`, without copies into or out of numpy at every run."""
    ort = package("onnxruntime")
    binding, memory = session.io_binding(), _CONDITIONS.get().placed.memory or (CPU, 0)
    for declared in session.get_inputs():
        value = ort.OrtValue.ortvalue_from_numpy(feed[declared.name], *memory)
        binding.bind_ortvalue_input(declared.name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, *memory)
    return Loaded(
        run=lambda: session.run_with_iobinding(binding),
        result=lambda: binding.copy_outputs_to_cpu()[0],
    )


def on_onnxruntime(
    name: str, about: str, model: Callable[[FedT], bytes], isa: str | None = None
) -> Backend[FedT]:
    """The backend that runs `model` of a case on the case's `feed`; see `make_session` for `isa`."""

    def load(case: FedT, threads: int) -> Loaded:
        return bound(make_session(model(case), threads, isa=isa), case.feed)

    return Backend(name, about, load, isa=isa, model=model)
