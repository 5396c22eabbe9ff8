"""Where torch computes, and in which type: tensors go to a device and come back here, nowhere else.

The host is the CPU. Scales, grids and codes are computed there, in float32 and float64, so that equal
inputs give equal bits with every device; a device runs the float network and what is learned on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fp4dit_onnx.errors import OutOfMemoryError, UsageError
from fp4dit_onnx.system.devices import AUTO, DEVICES, PRECISIONS, checked_device, checked_precision
from fp4dit_onnx.system.executors import Need

__all__ = ["HOST", "Execution", "execution_of", "host", "sum64"]

_CPU = torch.device("cpu")
_FLOAT64 = ("cpu", "cuda")
"""Types of devices that all have float64: MPS has none, and not all of xpu."""
_USE = "use --device cpu, or --device auto for the best one that is there"


@dataclass(frozen=True)
class Execution:
    """A device, and the type of the float network there.

    Attributes:
        device: of weights and activations.
        dtype: of the network's floating-point tensors: float32, or bfloat16. Sums, trained parameters
            and what is rounded are float32 either way.
        limit: bytes of the device that weights and a unit's samples may take; the host has none.
    """

    device: torch.device = _CPU
    dtype: torch.dtype = torch.float32
    limit: float = math.inf

    @property
    def on_host(self) -> bool:
        """Whether the device is the CPU."""
        return self.device.type == _CPU.type

    @property
    def precision(self) -> str:
        """Name of the type."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def float64(self) -> torch.device:
        """Where float64 is computed: the device if it has that type, else the host."""
        return self.device if self.device.type in _FLOAT64 else _CPU

    def there(self, value: Any) -> Any:
        """The tensors of nested tuples, lists and dictionaries on the device, in their types."""
        return pytree.tree_map_only(torch.Tensor, lambda t: t.to(self.device), value)

    def cast(self, value: Any) -> Any:
        """The same with floating-point tensors in the network's type."""

        def one(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

        return pytree.tree_map_only(torch.Tensor, one, value)

    @property
    def exact(self) -> Execution:
        """The device, in float32."""
        return replace(self, dtype=torch.float32)

    def products(self) -> AbstractContextManager[Any]:
        """While open, networks in float32 there multiply matrices in this type."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=False)

    def room(self, host_bytes: float) -> float:
        """Bytes that a network may take: half of the device's free memory; on the host `host_bytes`.

        The other half is for what it computes.
        """
        free = _free_memory(self.device)
        return min(host_bytes if free is None else free / 2, self.limit / 2)

    def need(self, memory: int) -> Need:
        """What a call that computes here takes of another machine, with so many bytes of memory.

        Raises:
            UsageError: a device by its number.
        """
        if self.device.index is not None:
            raise UsageError(
                f"device {self.device} with executor ray: each machine has a number of its own for "
                f"what Ray gives a call: expected --device {self.device.type}"
            )
        return Need(torch.get_num_threads(), gpus=int(not self.on_host), memory=memory)

    @property
    def once(self) -> Execution:
        """For a network that runs once: under a limit none of it stays on the device."""
        return self if self.limit == math.inf else replace(self, limit=0.0)

    @contextmanager
    def within_memory(self) -> Iterator[None]:
        """Turn running out of the device's memory into an error that says what to set.

        Raises:
            OutOfMemoryError: that happened.
        """
        try:
            yield
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            first = str(error).partition("\n")[0].partition(". ")[0]
            half = (
                ""
                if self.dtype == torch.bfloat16
                else "--precision bfloat16 halves what it takes; "
            )
            raise OutOfMemoryError(
                f"device {self.device} ran out of memory ({first}): {half}less --max-vram keeps fewer "
                "blocks and samples there at a time; --device cpu uses the machine's memory"
            ) from error


HOST = Execution()
"""The CPU in float32."""


def host(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, without gradients; itself if it is there."""
    return tensor.detach().to(_CPU)


def sum64(tensor: torch.Tensor) -> float:
    """The sum of a tensor's elements in float64."""
    able = tensor if tensor.device.type in _FLOAT64 else host(tensor)
    return float(able.sum(dtype=torch.float64))


def execution_of(
    device: str, precision: str = PRECISIONS[0], limit: float = math.inf
) -> Execution:
    """What a request names.

    Args:
        device: ``auto`` for the first of CUDA, MPS and xpu that is there, else the CPU; or the name of
            one, see `system.devices`.
        precision: one of `system.devices.PRECISIONS`.
        limit: see `Execution`.

    Raises:
        UsageError: unknown names, a device that is not there, or one without that precision.
    """
    checked_precision(precision)
    name = checked_device(device)
    if name == AUTO:
        name = next((kind for kind in DEVICES if kind != "cpu" and _count(kind)), "cpu")
    kind, _, number = name.partition(":")
    count = 1 if kind == "cpu" else _count(kind)
    if int(number or 0) >= count:
        there = ["cpu", *(f"{k}:{i}" for k in DEVICES if k != "cpu" for i in range(_count(k)))]
        raise UsageError(
            f"device {name}: torch {torch.__version__} finds {', '.join(there)} here; {_USE}"
            + ("" if count else f", or install a build of torch for {kind}")
        )
    limit = math.inf if kind == "cpu" else limit
    found = Execution(torch.device(name), getattr(torch, precision), limit)
    if kind == "cuda" and found.dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
        raise UsageError(f"device {name} has no bfloat16: expected --precision float32")
    return found


def _count(kind: str) -> int:
    """Devices of a type that torch finds; MPS is one or none."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind)
    return int(module.device_count()) if module.is_available() else 0


def _free_memory(device: torch.device) -> int | None:
    """Free bytes of an accelerator; None where torch does not say."""
    if device.type in ("cuda", "xpu"):
        return int(getattr(torch, device.type).mem_get_info(device)[0])
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Torch's own class for CUDA and xpu; MPS raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)
