"""Devices that ONNX Runtime runs bundles on: its execution providers, what each needs, what is wrong.

Another device is another record in `DEVICES`.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fp4dit_onnx.errors import MissingExtraError, UsageError
from fp4dit_onnx.system.devices import AUTO, CPU
from fp4dit_onnx.system.nvidia import Trouble, nvidia_driver
from fp4dit_onnx.system.shared_objects import file_name, loads, missing, versioned_name
from fp4dit_onnx.system.silence import quiet
from fp4dit_onnx.system.versions import version

__all__ = [
    "CPU_PROVIDER",
    "DEVICES",
    "FLAVOURS",
    "ON_CPU",
    "Device",
    "Placement",
    "place",
    "placed_on",
    "runtime_package",
    "survey",
]

CPU_PROVIDER = "CPUExecutionProvider"
OLDEST_GPU = (7, 5)
"""Turing: the first with tensor cores for int8; kernels and ONNX Runtime need it."""
_CUDA_OF_DRIVERS = {12: "525", 13: "580"}
"""Major version of CUDA -> the first driver that runs it."""
_LAST_OF_CUDA = {12: "onnxruntime-gpu<1.27"}
"""Major version of CUDA -> what installs the last onnxruntime-gpu that was built for it."""


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes:
        providers: ONNX Runtime's names for it; the first one that is there is taken.
        package: the distribution of ONNX Runtime that has it.
        system: the only one that there is such a package for, as `sys.platform`; None for several.
        extras: of the package, which bring what else it needs.
        numbered: the provider's option that chooses among several such devices; None where there
            is one.
        options: of the provider.
        memory: ONNX Runtime's name of its memory, where inputs and outputs can be bound to it.
        mem_pattern: whether sessions plan their memory ahead, from the second run on. Not every
            provider takes it, and on the CPU it is a second block beside the first run's, and no
            faster.
        kernels: the custom-op library has some for it.
        capture: options of the first provider that make it record the launches of a run as a graph,
            which later runs replay; None where it cannot.
        hardware: why there is no such device of that number, or None; for devices that can be asked
            for without their provider.
        software: why the provider, which is there, cannot run on it, or None.
    """

    providers: tuple[str, ...]
    package: str
    system: str | None = None
    extras: str = ""
    numbered: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    memory: str | None = None
    mem_pattern: bool = True
    kernels: bool = False
    capture: Mapping[str, str] | None = None
    hardware: Callable[[int], Trouble | None] | None = None
    software: Callable[[], Trouble | None] = lambda: None

    @property
    def requirement(self) -> str:
        """What pip installs it by."""
        return f"'{self.package}[{self.extras}]'" if self.extras else self.package


def _gpu_trouble(number: int) -> Trouble | None:
    """What is wrong with the driver, or with GPU `number`."""
    driver = nvidia_driver()
    if isinstance(driver, Trouble):
        return driver
    if number >= len(driver.gpus):
        there = ", ".join(f"cuda:{i} ({gpu.name})" for i, gpu in enumerate(driver.gpus))
        return Trouble(f"this machine has {there}", "choose one of them")
    gpu = driver.gpus[number]
    if gpu.capability < OLDEST_GPU:
        oldest = "sm_{}{}".format(*OLDEST_GPU)
        return Trouble(
            f"{gpu.name} is {gpu.architecture}, older than {oldest}",
            f"use a GPU from Turing ({oldest}) on, or --device {CPU}",
        )
    return None


def _cuda_trouble() -> Trouble | None:
    """What is wrong between ONNX Runtime's CUDA provider, the driver and CUDA's libraries."""
    driver, wanted = nvidia_driver(), _built_for()
    if isinstance(driver, Trouble):
        return driver
    if wanted is None or driver.cuda[0] >= wanted:
        return _libraries_trouble()
    new = _CUDA_OF_DRIVERS.get(wanted)
    update = f"update the driver, to {new} or newer" if new else "update the driver"
    older = _LAST_OF_CUDA.get(driver.cuda[0])
    return Trouble(
        f"the driver runs CUDA up to {driver.cuda[0]}.{driver.cuda[1]}, and this onnxruntime-gpu was "
        f"built for CUDA {wanted}",
        f"{update}; or  pip install '{older}'" if older else update,
    )


def _built_for() -> int | None:
    """Major version of CUDA that this ONNX Runtime was built for; None where it does not say."""
    try:
        package = importlib.import_module("onnxruntime.capi.build_and_package_info")
    except ModuleNotFoundError:
        return None
    found = re.match(r"\d+", str(getattr(package, "cuda_version", "")))
    return int(found[0]) if found else None


def _libraries_trouble() -> Trouble | None:
    """Names the libraries of CUDA that the provider needs and that are not found."""
    preload()
    path = _capi() / file_name("onnxruntime_providers_cuda")
    absent = missing(path) if path.is_file() else []
    if not absent:
        return None
    wanted = _built_for()
    others = [m for m in _CUDA_OF_DRIVERS if m != wanted and loads(versioned_name("cudart", m))]
    beside = f"; the CUDA that is here is {others[0]}, expected {wanted}" if others else ""
    return Trouble(
        f"{', '.join(absent)} cannot be loaded{beside}",
        f"run  pip install {DEVICES['cuda'].requirement}",
    )


def _capi() -> Path:
    """The folder of ONNX Runtime's own libraries."""
    return Path(str(runtime_package().__file__)).parent / "capi"


@functools.cache
def preload() -> None:
    """Load CUDA's libraries from NVIDIA's Python packages, where there are any: no path leads there."""
    load = getattr(runtime_package(), "preload_dlls", None)  # from 1.21 on
    if load is not None:
        with quiet():
            load()


DEVICES: dict[str, Device] = {
    "cuda": Device(
        ("CUDAExecutionProvider", "CudaPluginExecutionProvider"),
        "onnxruntime-gpu",
        extras="cuda,cudnn",
        numbered="device_id",
        # TF32 rounds factors to 10 bits of mantissa: ten times the error that verify allows.
        options={"use_tf32": "0"},
        memory="cuda",
        kernels=True,
        capture={"enable_cuda_graph": "1"},
        hardware=_gpu_trouble,
        software=_cuda_trouble,
    ),
    "migraphx": Device(
        ("MIGraphXExecutionProvider",), "onnxruntime-migraphx", numbered="device_id"
    ),
    "directml": Device(
        ("DmlExecutionProvider",),
        "onnxruntime-directml",
        system="win32",
        numbered="device_id",
        mem_pattern=False,
    ),
    "coreml": Device(("CoreMLExecutionProvider",), "onnxruntime", system="darwin"),
    "openvino": Device(("OpenVINOExecutionProvider",), "onnxruntime-openvino"),
    CPU: Device((CPU_PROVIDER,), "onnxruntime", mem_pattern=False, kernels=True),
}
"""Name -> device, in the order in which `auto` looks for them."""

FLAVOURS = tuple(sorted({device.package for device in DEVICES.values()}))
"""Distributions that install the same module, so that two of them overwrite each other."""

_NAME = re.compile(rf"({'|'.join(DEVICES)})(?::(\d{{1,3}}))?", re.ASCII)


@dataclass(frozen=True)
class Placement:
    """Where a session runs.

    Attributes:
        name: of the devices, such as ``cuda:0``.
        providers: ONNX Runtime's names and options; the CPU is the last, for nodes that no other
            one has a kernel for.
        memory: kind and number of the memory that inputs and outputs may stay in; None for the
            machine's.
        mem_pattern: see `Device`.
        kernels: whether the custom-op library may have some for the devices.
        capture: see `Device`; of the first device.
    """

    name: str
    providers: tuple[tuple[str, dict[str, str]], ...]
    memory: tuple[str, int] | None = None
    mem_pattern: bool = True
    kernels: bool = False
    capture: Mapping[str, str] | None = None

    def capturing(self) -> Placement:
        """The same, where runs are recorded and replayed: for inputs of fixed sizes and addresses.

        Raises:
            UsageError: the device cannot do that.
        """
        if self.capture is None:
            able = " or ".join(name for name, device in DEVICES.items() if device.capture)
            raise UsageError(
                f"device {self.name} records no CUDA graphs: expected --device {able}, or leave "
                "--cuda-graph out"
            )
        (first, options), *others = self.providers
        return replace(self, providers=((first, {**options, **self.capture}), *others))

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU is the only device."""
        return self.name == CPU


ON_CPU = Placement(
    CPU,
    ((CPU_PROVIDER, {}),),
    mem_pattern=DEVICES[CPU].mem_pattern,
    kernels=DEVICES[CPU].kernels,
)
"""What `place` gives for the CPU."""


def runtime_package() -> Any:
    """The module onnxruntime.

    Raises:
        MissingExtraError: it is not installed.
        UsageError: it is, and cannot be imported.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as cause:
        raise MissingExtraError("onnxruntime", "cpu") from cause
    except ImportError as cause:
        raise UsageError(
            f"onnxruntime is installed and cannot be imported ({cause}): before 1.19 it needs "
            "numpy 1; run  pip install --upgrade onnxruntime, or  pip install 'numpy<2'"
        ) from cause
    return onnxruntime


def available() -> tuple[str, ...]:
    """Providers that this ONNX Runtime was built with; whether they run is another question."""
    return tuple(runtime_package().get_available_providers())


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)


def placed_on(device: str | Placement) -> Placement:
    """What `place` gives for a name; a placement stays."""
    return device if isinstance(device, Placement) else place(device)


def place(device: str, say: Callable[[str], None] = _warn) -> Placement:
    """Where sessions for `device` run.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1`` or another name of `DEVICES`; several with commas, of
            which the first that has a kernel for a node runs it; ``auto`` for the first one that can
            be used, the CPU if there is no other.
        say: is told why ``auto`` found the CPU alone.

    Raises:
        UsageError: an unknown name, or a device that cannot be used; the message says why, and what
            to do.
    """
    if device == AUTO:
        return _best(say)
    asked = []
    for name in device.split(","):
        found = _NAME.fullmatch(name)
        if found is None or (found[2] and DEVICES[found[1]].numbered is None):
            numbered = ", ".join(f"{n}:1" for n, d in DEVICES.items() if d.numbered)
            raise UsageError(
                f"unknown device {name!r}: expected {AUTO}, {', '.join(reversed(DEVICES))}, or one "
                f"of several by its number, such as {numbered.partition(',')[0]}"
            )
        asked.append((found[1], int(found[2] or 0)))
    for kind, number in asked:
        if trouble := _trouble(kind, number):
            raise UsageError(f"device {_named(kind, number)}: {trouble}")
    return _placement(asked)


def survey() -> tuple[tuple[str, ...], dict[str, Trouble]]:
    """Devices that can be used, the CPU last; and those that are here and cannot, with the reasons.

    A device is here if its provider is, or if it is found without.
    """
    usable, troubles = [], {}
    for kind, device in DEVICES.items():
        trouble = _trouble(kind, 0)
        if trouble is None:
            usable.append(kind)
        elif _provider(device) or (device.hardware and device.hardware(0) is None):
            troubles[kind] = trouble
    return tuple(usable), troubles


def _best(say: Callable[[str], None]) -> Placement:
    usable, troubles = survey()
    if usable[0] == CPU:
        reasons = "; ".join(f"{kind}: {trouble}" for kind, trouble in troubles.items())
        say(
            f"device {AUTO}: the CPU runs the models; {reasons or 'there is no other device here'}"
        )
    return _placement([(usable[0], 0)])


def _trouble(kind: str, number: int) -> Trouble | None:
    device = DEVICES[kind]
    if device.hardware and (trouble := device.hardware(number)):
        return trouble
    if _provider(device):
        return device.software()
    cause = f"ONNX Runtime {runtime_package().__version__} has no {device.providers[0]}"
    if device.system not in (None, sys.platform):
        return Trouble(cause, f"expected another device on {sys.platform}, which has none for it")
    here = [package for package in FLAVOURS if version(package)]
    if device.package in here and len(here) > 1:
        cause += f", since {' and '.join(here)} are installed beside each other"
    others = " ".join(here) or DEVICES[CPU].package
    install = f"pip install {device.requirement}"
    return Trouble(cause, f"run  pip uninstall {others}  and then  {install}")


def _provider(device: Device) -> str | None:
    """The first of a device's providers that is there."""
    there = available()
    return next((name for name in device.providers if name in there), None)


def _named(kind: str, number: int) -> str:
    return kind if DEVICES[kind].numbered is None else f"{kind}:{number}"


def _placement(asked: list[tuple[str, int]]) -> Placement:
    providers: dict[str, dict[str, str]] = {}
    for kind, number in asked:
        device = DEVICES[kind]
        chosen = {device.numbered: str(number)} if device.numbered else {}
        providers[_provider(device) or device.providers[0]] = {**device.options, **chosen}
    first, number = asked[0]
    memory = DEVICES[first].memory
    return Placement(
        ",".join(_named(*one) for one in asked),
        (*providers.items(), *([] if CPU_PROVIDER in providers else [(CPU_PROVIDER, {})])),
        (memory, number) if memory else None,
        all(DEVICES[kind].mem_pattern for kind, _ in asked),
        all(DEVICES[kind].kernels for kind, _ in asked),
        DEVICES[first].capture,
    )
