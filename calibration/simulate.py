"""The PyTorch simulation: the float network with its quantized layers replaced, run from the state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fp4dit_onnx.calibration.grid import quantize_rows
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.state import QuantizedLayer, QuantizedState

__all__ = ["SimulatedLinear", "simulate", "simulated"]


class SimulatedLinear(torch.nn.Module):
    """A linear layer that computes with quantized weights and, if asked for, quantized activations.

    Args:
        layer: codes and scales.
        bias: float32 [N] or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layer: QuantizedLayer, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        self.in_features, self.out_features = layer.k, layer.n
        self.register_buffer("weight", torch.from_numpy(layer.weight()))
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N], float32."""
        fmt = self.layer.spec.activation_format
        if fmt is None:
            return torch.nn.functional.linear(x, self.weight, self.bias)
        q, scale = quantize_rows(x, fmt)
        y = torch.nn.functional.linear(q, self.weight) * scale
        return y if self.bias is None else y + self.bias


def _place(network: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def simulate(network: torch.nn.Module, state: QuantizedState) -> None:
    """Replace the linears of `network` that `state` holds, in place.

    Raises:
        UsageError: the network has no such linear, or one of another shape.
    """
    for name, layer in state.layers.items():
        try:
            linear = network.get_submodule(name)
        except AttributeError:
            raise UsageError(f"the state has layer {name}, the model has not") from None
        shape = tuple(linear.weight.shape) if isinstance(linear, torch.nn.Linear) else None
        if not isinstance(linear, torch.nn.Linear) or shape != (layer.n, layer.k):
            raise UsageError(
                f"layer {name}: the state has a weight of {(layer.n, layer.k)}, the model {shape}: "
                "they are not of the same model"
            )
        _place(network, name, SimulatedLinear(layer, linear.bias))


@contextmanager
def simulated(network: torch.nn.Module, state: QuantizedState) -> Iterator[torch.nn.Module]:
    """`network` with `state` in place, restored on exit."""
    names = dict(network.named_modules())
    originals = {name: names[name] for name in state.layers if name in names}
    try:
        simulate(network, state)
        yield network
    finally:
        for name, module in originals.items():
            _place(network, name, module)
