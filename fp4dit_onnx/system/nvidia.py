"""NVIDIA's driver and what it says of the GPUs, by the driver's own library alone."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["DRIVER", "Driver", "Gpu", "Trouble", "nvidia_driver"]

DRIVER = {"win32": "nvcuda.dll"}.get(sys.platform, "libcuda.so.1")
"""The driver's library, which comes with the driver and with nothing else."""

_COMPUTE_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""
_NAME_BYTES = 256


@dataclass(frozen=True)
class Trouble:
    """Why something cannot be used.

    Attributes:
        cause: what was found.
        cure: what to do.
    """

    cause: str
    cure: str

    def __str__(self) -> str:
        """Both, as in an error message."""
        return f"{self.cause}: {self.cure}"


_DRIVER = "install NVIDIA's driver; in a container, start it with GPUs (docker run --gpus all)"
_SEEN = (
    "check  nvidia-smi  and the environment's CUDA_VISIBLE_DEVICES; a container is started with "
    "docker run --gpus all"
)
_REFUSALS = {
    34: Trouble(f"{DRIVER} is the stub of the CUDA toolkit", _DRIVER),
    46: Trouble("the GPU is taken by another process alone", "end that process"),
    100: Trouble("the driver finds no GPU", _SEEN),
    101: Trouble("CUDA_VISIBLE_DEVICES names no GPU of this machine", _SEEN),
    802: Trouble(
        "the GPUs' switches are not ready",
        "start NVIDIA's fabric manager, of the driver's version",
    ),
    803: Trouble(
        "the driver's library and its kernel module are of different versions",
        "restart the machine",
    ),
    804: Trouble(
        "CUDA's forward compatibility package does not support this GPU",
        "remove the package cuda-compat, or its folder from LD_LIBRARY_PATH",
    ),
}
"""What cuInit answers, and what that means."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: NVIDIA's.
        capability: its compute capability, (9, 0) for sm_90.
        memory: in bytes.
    """

    name: str
    capability: tuple[int, int]
    memory: int

    @property
    def architecture(self) -> str:
        """Such as ``sm_90``."""
        return "sm_{}{}".format(*self.capability)

    def __str__(self) -> str:
        """For people."""
        return f"{self.name}, {self.architecture}, {self.memory / 2**30:.1f} GiB"


@dataclass(frozen=True)
class Driver:
    """The driver.

    Attributes:
        cuda: the newest CUDA that it runs, (13, 0).
        gpus: in the order of their numbers, those that CUDA_VISIBLE_DEVICES leaves.
    """

    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]

    def __str__(self) -> str:
        """For people."""
        gpus = "; ".join(f"cuda:{number} {gpu}" for number, gpu in enumerate(self.gpus))
        return "driver for CUDA {}.{}: {}".format(*self.cuda, gpus)


def nvidia_driver() -> Driver | Trouble:
    """The driver of this machine, or why there is none to use."""
    try:
        library = ctypes.CDLL(DRIVER)
        return _asked(lambda name, *arguments: int(getattr(library, name)(*arguments)))
    except OSError as cause:
        return Trouble(f"there is no NVIDIA driver ({cause})", _DRIVER)
    except AttributeError as cause:
        return Trouble(f"{DRIVER} is no NVIDIA driver ({cause})", _DRIVER)


def _asked(call: Callable[..., int]) -> Driver | Trouble:
    if code := call("cuInit", 0):
        other = Trouble(f"the driver refuses with CUDA error {code}", f"{_SEEN}; or restart")
        return _REFUSALS.get(code, other)

    def number(name: str, *arguments: object) -> int:
        found = ctypes.c_int()
        return 0 if call(name, ctypes.byref(found), *arguments) else found.value

    def gpu(index: int) -> Gpu:
        device = number("cuDeviceGet", index)
        name, memory = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
        call("cuDeviceGetName", name, _NAME_BYTES, device)
        call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        major, minor = (number("cuDeviceGetAttribute", a, device) for a in _COMPUTE_CAPABILITY)
        return Gpu(name.value.decode(errors="replace"), (major, minor), memory.value)

    version = number("cuDriverGetVersion")  # 1000 * major + 10 * minor
    gpus = tuple(gpu(index) for index in range(number("cuDeviceGetCount")))
    return Driver((version // 1000, version % 1000 // 10), gpus) if gpus else _REFUSALS[100]
