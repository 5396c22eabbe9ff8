"""ONNX Runtime sessions as this project needs them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fp4dit_onnx.errors import BundleError, OutOfMemoryError, UsageError
from fp4dit_onnx.runtime.providers import Placement, placed_on, runtime_package
from fp4dit_onnx.system.devices import CPU
from fp4dit_onnx.system.resources import checked_threads, return_memory
from fp4dit_onnx.system.texts import utf8_text

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "MIN_ORT",
    "Session",
    "explaining",
    "session",
    "session_options",
    "started",
    "with_library",
]

_EXACT_MATMUL = "session.qdq_matmulnbits_accuracy_level"
"""ONNX Runtime fuses DequantizeLinear + MatMul to MatMulNBits and, unless this is 0, quantizes the
activations once more on the way (relative error 4e-3 in place of 3e-7)."""

_FATAL_ONLY = 4
"""Errors are exceptions too; the log would write names from the model to the terminal as they are."""
LAYERS = ("FpQuantize", "FpLinear", "FpAttention")
"""Operators that take a transformer's time: where one of them has no kernel the tensors of all layers
would be copied to the CPU and back."""
_MEMORY_FULL = re.compile(
    r"Failed to allocate memory|out of memory|ALLOC_FAILED|Available memory of \d+ is smaller"
    r"|GPU memory are not to be had"
)
"""In what CUDA, its libraries, ONNX Runtime and our library say of a device's memory that is full."""
MIN_ORT = (1, 18)
"""The first release that reads opset 21 and IR version 10, which bundles use."""


class Session(Protocol):
    """The part of onnxruntime.InferenceSession that a pipeline uses."""

    def get_inputs(self) -> Sequence[Any]:
        """What the model takes; every item has a ``name`` and a ``shape``."""

    def get_outputs(self) -> Sequence[Any]:
        """What the model gives; every item has a ``name``. Asked of text encoders only."""

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """The model's outputs, in the order of `outputs`, or all of them."""


def session(
    path: Path | str,
    *,
    device: str | Placement = CPU,
    library: bool | None = None,
    threads: int | None = None,
    sizes: Mapping[str, int] | None = None,
    arena: bool = True,
) -> onnxruntime.InferenceSession:
    """A session of the model at `path`.

    Args:
        path: an ONNX file; external data lie beside it.
        device: where it runs, see `providers.place`; or what that gave. Nodes that the device has no
            kernel for run on the CPU. Where ``auto`` finds the CPU alone, a warning says why.
        library: register the custom-op library, so that kernels run and not the function bodies;
            None where it has kernels for the device.
        threads: how many threads run one operator on the CPU; None leaves the choice to ONNX
            Runtime.
        sizes: of inputs, by the names that the model gives them: the only ones that it will be run
            with. What is computed of sizes alone is then computed now, and no node of it is left.
        arena: keep memory for the next tensor on the CPU; without, a VAE decoder takes a seventh
            less of it and a third more time.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        BundleError: no such file, or one that ONNX Runtime refuses; `run` raises it where the model
            cannot be computed.
        OutOfMemoryError: the device has too little memory, now or in `run`.
        UsageError: ONNX Runtime is too old, the device or the library cannot be used,
            ``FP4DIT_ISA`` names kernels that cannot run, the path is not UTF-8, or there are too many
            threads; see `checked_threads`.
    """
    onnxruntime = runtime_package()
    _check_age(onnxruntime.__version__)
    path = Path(path)
    if not os.path.isfile(path):
        raise BundleError(
            f"{path} does not exist: expected an ONNX model; export the bundle again"
        )
    name = utf8_text("path", str(path))
    placed = placed_on(device)
    options = session_options(placed, threads)
    options.enable_cpu_mem_arena = arena
    for size, value in (sizes or {}).items():
        options.add_free_dimension_override_by_name(size, value)
    if with_library(placed, library):
        from fp4dit_onnx.runtime.library import library_path

        path_of_library = str(library_path())
        try:
            options.register_custom_ops_library(path_of_library)
        except Exception as cause:  # as below
            raise UsageError(f"custom-op library: {_reason(cause)}") from cause
    try:
        loaded = started(name, options, placed)
    except UsageError:
        raise
    except Exception as cause:  # its error classes share no base below Exception
        raise _out_of_memory(cause, placed) or BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {_explained(cause)}"
        ) from cause
    return_memory()  # what loading took: of a VAE decoder as much as its weights
    return explaining(loaded, path, placed)


def session_options(placed: Placement, threads: int | None = None) -> Any:
    """onnxruntime.SessionOptions as every session has them; arguments as `session` has them."""
    options = runtime_package().SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry(_EXACT_MATMUL, "0")
    options.enable_mem_pattern = placed.mem_pattern
    if threads is not None:
        options.intra_op_num_threads = checked_threads(threads)
    return options


def started(model: str | bytes, options: Any, placed: Placement) -> onnxruntime.InferenceSession:
    """A session with all providers of a placement: ONNX Runtime goes on without those that fail.

    Args:
        model: its path, or serialized.
        options: onnxruntime.SessionOptions.
        placed: where.

    Raises:
        Exception: what ONNX Runtime raises.
        UsageError: a provider did not start.
    """
    onnxruntime = runtime_package()
    loaded = onnxruntime.InferenceSession(
        model, options, providers=list(placed.providers), enable_fallback=False
    )
    lacking = [one for one, _ in placed.providers if one not in loaded.get_providers()]
    if lacking:
        raise UsageError(
            f"device {placed.name}: ONNX Runtime {onnxruntime.__version__} could not start "
            f"{', '.join(lacking)}: see  fp4dit-onnx doctor, or use --device {CPU}"
        )
    return loaded


def with_library(placed: Placement, wanted: bool | None) -> bool:
    """Whether sessions there register the custom-op library.

    Args:
        placed: from `providers.place`.
        wanted: None for whatever runs there: kernels for a GPU if it has those of `LAYERS`.

    Raises:
        LibraryError: it is wanted, and cannot be used.
        UsageError: it is wanted, and has no kernels for the device.
    """
    if wanted is False or placed.on_cpu:
        return wanted is not False
    bodies = "leave the library out (--no-library), so that the function bodies run there"
    if not placed.kernels:
        if wanted:
            raise UsageError(
                f"device {placed.name}: the custom-op library has no kernels for it, and those for "
                f"the CPU would copy every tensor: {bodies}"
            )
        return False
    from fp4dit_onnx.runtime.library import Library, LibraryError

    try:
        library = Library()
    except LibraryError:
        if wanted:
            raise
        return False
    if wanted and not library.gpu_operators:
        raise UsageError(
            f"device {placed.name}: {library.path} was built without kernels for GPUs: install a "
            f"released wheel, or run  make gpu  and install again, or {bodies}"
        )
    return bool(wanted) or set(LAYERS) <= {*library.gpu_operators}


def explaining(
    loaded: onnxruntime.InferenceSession, path: Path | str, placed: Placement
) -> onnxruntime.InferenceSession:
    """`loaded`, which raises the errors of `session` where the model at `path` cannot be computed."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    refusals = (state.Fail, state.RuntimeException, state.NotImplemented, state.InvalidArgument)

    def explained_by(run: Callable[..., Any]) -> Callable[..., Any]:
        def explained(*arguments: Any, **named: Any) -> Any:
            try:
                return run(*arguments, **named)
            except refusals as cause:
                raise _out_of_memory(cause, placed) or BundleError(
                    f"ONNX Runtime {onnxruntime.__version__} cannot run {path}: {_reason(cause)}; "
                    "the file is damaged, what it is given does not fit it, or more memory is "
                    f"needed than there is: {_COPY}"
                ) from cause

        return explained

    loaded.run = explained_by(loaded.run)
    loaded.run_with_iobinding = explained_by(loaded.run_with_iobinding)
    return loaded


def _out_of_memory(cause: Exception, placed: Placement) -> OutOfMemoryError | None:
    """An error that says what to set, if `cause` is that a device's memory is full."""
    if placed.on_cpu or not _MEMORY_FULL.search(str(cause)):
        return None
    return OutOfMemoryError(
        f"device {placed.name} ran out of memory ({_reason(cause)}): make fewer images at a time "
        f"(batch_size) or smaller ones, end what else uses it, or take --device {CPU}, which uses "
        "the machine's memory"
    )


def _check_age(version: str) -> None:
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is not None and (int(found[1]), int(found[2])) < MIN_ORT:
        raise UsageError(
            f"ONNX Runtime {version} is too old for bundles: expected {MIN_ORT[0]}.{MIN_ORT[1]} "
            "or newer, the first to read opset 21 and IR version 10; "
            "run  pip install --upgrade onnxruntime"
        )


_UPGRADE = "with  pip install --upgrade onnxruntime"
_COPY = "copy or export the bundle again"
_CAUSES = {
    r"Could not find an implementation for ((?:Deq|Q)uantizeLinear)\(": (
        "it has no kernel for {0} of these types; a bundle of the target standard is for other "
        "runtimes: export or convert for another target"
    ),
    r"Could not find an implementation for (\w+)\(": (
        f"it has no kernel for {{0}} of these types: install a newer one {_UPGRADE}"
    ),
    r"Fatal error: com\.microsoft:(\w+)\(-?\d+\) is not a registered function": (
        "it lacks the operator {0} of bundles of the target nbits: install a newer or complete one "
        f"{_UPGRADE}, or use the original bundle, or one of the target inline"
    ),
    r"Only (\w+) quantization is supported": (
        f"its MatMulNBits takes {{0}} weights alone: install a newer one {_UPGRADE}, or use the "
        "original bundle, or one of the target inline"
    ),
    r"Unsupported model IR version: (\d+), max supported IR version: (\d+)": (
        f"the model is of IR version {{0}} and it reads up to {{1}}: install a newer one {_UPGRADE}"
    ),
    r"Opset (\d+) is under development .* till opset (\d+)": (
        f"the model uses opset {{0}} and it knows up to {{1}}: install a newer one {_UPGRADE}"
    ),
    r"(Protobuf parsing failed)": f"it is not an ONNX model or was cut short ({{0}}): {_COPY}",
    r"Function inlining exceeded the configured cumulative (\w+) expansion limit": (
        "its function bodies are more than its limit of {0}s allows: register the custom-op library, "
        "or convert the bundle with --target inline"
    ),
    r"(External (?:initializer|data path)\b.*|cannot get file size: .*)": (
        f"its data file is missing or too short ({{0}}): {_COPY}"
    ),
}
"""What ONNX Runtime says of files and of its own age, and what that means."""


def _explained(cause: Exception) -> str:
    """Cause and remedy where they are known, else what ONNX Runtime says."""
    for pattern, text in _CAUSES.items():
        found = re.search(pattern, str(cause))
        if found is not None:
            return text.format(*found.groups())
    return _reason(cause)


def _reason(cause: Exception) -> str:
    """The first line of an ONNX Runtime error, without its codes."""
    text = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    return re.split(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", text)[-1]
