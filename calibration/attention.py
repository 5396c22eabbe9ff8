"""Attention with q, k and v quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fp4dit_onnx.calibration.grid import quantize_rows
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.network.attention import AttentionProcessor
from fp4dit_onnx.numbers.formats import FloatFormat
from fp4dit_onnx.spec.recipe import ATTENTION_PARTS

__all__ = ["QuantizedAttention", "attention_module"]


@dataclass(frozen=True)
class QuantizedAttention(AttentionProcessor):
    """Attention with q, k and v rounded, one scale per head and token; probabilities are float.

    Attributes:
        format: of q, k and v.
    """

    format: FloatFormat

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [B, S, H, D] after quantize and dequantize over D."""
        q, scale = quantize_rows(x, self.format)
        return q * scale


def attention_module(network: torch.nn.Module, name: str) -> Any:
    """The attention called `name`, of diffusers' kind: its processor can be set.

    Raises:
        UsageError: the network has no module of that name, or one that is not an attention.
    """
    try:
        module = network.get_submodule(name)
    except AttributeError:
        raise UsageError(f"the state has attention {name}, the model has not") from None
    wanted = ("set_processor", *(f"to_{part}" for part in ATTENTION_PARTS))
    if not all(hasattr(module, attribute) for attribute in wanted):
        raise UsageError(
            f"attention {name}: in the model it is a {type(module).__name__}, expected a module "
            f"with {', '.join(wanted)}: state and model are not of the same model"
        )
    return module
