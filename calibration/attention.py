"""Attention with q, k and v quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fp4dit_onnx.calibration.grid import quantize_rows
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.formats import FloatFormat

__all__ = ["QuantizedAttention", "attention_module"]

ATTENTION = torch.nn.functional.scaled_dot_product_attention
MULTIPLIED = ("query", "key", "value")


class QuantizedAttention:
    """An attention's `forward` with q, k and v rounded where they are multiplied.

    That is after norms and rotations, and where text and image are joined, whatever the processor.
    Each head of each token has its own scale; probabilities are float.

    Args:
        forward: the attention's own.
        fmt: format of q, k and v.
    """

    rounds = True
    """Whether it rounds at all."""

    def __init__(self, forward: Callable[..., Any], fmt: FloatFormat) -> None:
        self.forward, self.format = forward, fmt

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the attention gives."""
        if not self.rounds:
            return self.forward(*args, **kwargs)
        with _Rounding(self.format):
            return self.forward(*args, **kwargs)


class _Rounding(TorchFunctionMode):
    """While open, torch's attention is of rounded q, k and v, [..., D] each."""

    def __init__(self, fmt: FloatFormat) -> None:
        super().__init__()
        self.format = fmt

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is not ATTENTION:
            return function(*args, **(kwargs or {}))
        given = {**dict(zip(MULTIPLIED, args, strict=False)), **(kwargs or {})}
        q, k, v = (self._rounded(given.pop(name)) for name in MULTIPLIED)
        return function(q, k, v, *args[len(MULTIPLIED) :], **given)

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        q, scale = quantize_rows(x.float(), self.format)
        return (q * scale).to(x.dtype)


def attention_module(network: torch.nn.Module, name: str) -> Any:
    """The attention called `name`, of diffusers' kind.

    Raises:
        UsageError: the network has no module of that name, or one that is not an attention.
    """
    try:
        module = network.get_submodule(name)
    except AttributeError:
        raise UsageError(f"the state has attention {name}, the model has not") from None
    if not hasattr(module, "set_processor"):
        raise UsageError(
            f"attention {name}: in the model it is a {type(module).__name__}, expected an attention "
            "of diffusers, with set_processor: state and model are not of the same model"
        )
    return module
