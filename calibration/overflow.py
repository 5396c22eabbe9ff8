"""Finding where a network in half precision leaves the range of its type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.network.blocks import tensors_of
from fp4dit_onnx.network.network import Network

__all__ = ["overflow_refused"]


@contextmanager
def overflow_refused(network: Network) -> Iterator[None]:
    """While open, what gives NaN or infinity is named; in float32 nothing is looked at.

    Raises:
        UsageError: a block's results, or what the network receives or gives, are not finite.
    """
    precision = network.execution.precision
    module = network.module

    def refuse(what: str, values: Any) -> None:
        floats = (tensor for tensor in tensors_of(values) if tensor.is_floating_point())
        if not all(bool(torch.isfinite(tensor).all()) for tensor in floats):
            raise UsageError(
                f"{what} hold NaN or infinity in {precision}: calibrate with --precision float32"
            )

    def after(what: str) -> Callable[..., None]:
        return lambda _, args, result: refuse(what, result)

    def before(_: torch.nn.Module, args: Any, kwargs: Any) -> None:
        refuse("what the text encoders and the sampler give", (args, kwargs))

    handles = []
    if network.execution.dtype != torch.float32:
        handles = [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after("the transformer's results")),
            *(
                module.get_submodule(name).register_forward_hook(
                    after(f"block {name}: its results")
                )
                for name in network.blocks
            ),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
