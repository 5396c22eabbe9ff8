"""Attention with q, k and v quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fp4dit_onnx.calibration.grid import quantize_rows
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.formats import FloatFormat

__all__ = ["InPlace", "QuantizedAttention", "attention_module"]

ATTENTION = torch.nn.functional.scaled_dot_product_attention


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
        with InPlace(self._rounding):
            return self.forward(*args, **kwargs)

    def _rounding(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Torch's attention of rounded q, k and v, [..., D] each."""
        q, k, v = (self._rounded(x) for x in (query, key, value))
        return ATTENTION(q, k, v, *args, **kwargs)

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        q, scale = quantize_rows(x.float(), self.format)
        return (q * scale).to(x.dtype)


class InPlace(TorchFunctionMode):
    """While open, `attention` is called in place of torch's, with its arguments; it may call torch's."""

    def __init__(self, attention: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.attention = attention

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What `function` gives, or what stands in its place."""
        called = self.attention if function is ATTENTION else function
        return called(*args, **(kwargs or {}))


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
