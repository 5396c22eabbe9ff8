"""Networks without weights: parameters have shape and type, their values come later from files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

__all__ = ["fake_network", "is_fake", "like", "own_tensors", "unfilled"]


class _Meta(TorchFunctionMode):
    """Uninitialized tensors take no memory; those with values are real, so that buffers keep theirs."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        result: torch.Tensor = func(*args, **kwargs)
        return result


def unfilled(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """What `make` builds, in evaluation mode, with parameters on the meta device and real buffers."""
    with _Meta(), torch.no_grad():
        return make().eval().requires_grad_(requires_grad=False)


def fake_network(make: Callable[[], torch.nn.Module]) -> tuple[torch.nn.Module, FakeTensorMode]:
    """What `make` builds, in evaluation mode, with fake parameters in float32.

    Buffers that a checkpoint does not store (`persistent=False`) are real.

    Args:
        make: builds the network on the CPU, as its class does it.

    Returns:
        The network, and the mode that its parameters belong to.
    """
    network = unfilled(make)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    stored = set(network.state_dict())

    def faked(tensor: torch.Tensor) -> torch.Tensor:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        with mode:
            return torch.empty(tensor.shape, dtype=dtype)

    shared: dict[int, torch.nn.Parameter] = {}
    for prefix, module in network.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                made = shared.setdefault(
                    id(parameter), torch.nn.Parameter(faked(parameter), requires_grad=False)
                )
                module._parameters[name] = made
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and (f"{prefix}.{name}" if prefix else name) in stored:
                module._buffers[name] = faked(buffer)
    return network, mode


def own_tensors(network: torch.nn.Module) -> list[tuple[dict[str, Any], str, torch.Tensor]]:
    """Every parameter and buffer: the dictionary of its module, its name there, and itself."""
    tables: list[dict[str, Any]] = [
        table for module in network.modules() for table in (module._parameters, module._buffers)
    ]
    return [(t, name, tensor) for t in tables for name, tensor in t.items() if tensor is not None]


def is_fake(tensor: object) -> bool:
    """Whether `tensor` has no values."""
    inner = tensor.data if isinstance(tensor, torch.nn.Parameter) else tensor
    return isinstance(inner, FakeTensor) or isinstance(tensor, FakeTensor)


def like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`values` as a parameter if `tensor` is one, without gradients."""
    if not isinstance(tensor, torch.nn.Parameter):
        return values
    return torch.nn.Parameter(values, requires_grad=False)
