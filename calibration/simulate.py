"""The PyTorch simulation: the float network with what the state quantizes replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from fp4dit_onnx.calibration.attention import QuantizedAttention, attention_module
from fp4dit_onnx.calibration.grid import expand_groups, quantize_activations
from fp4dit_onnx.calibration.transforming import transformed
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.network.fake import is_fake
from fp4dit_onnx.network.placing import place
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.spec.low_rank import LowRank
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState

__all__ = [
    "SimulatedLinear",
    "branch_tensors",
    "low_rank",
    "simulate",
    "simulated",
    "unquantized",
    "weights_only",
]


def branch_tensors(spec: LayerSpec, device: torch.device | None) -> dict[str, torch.Tensor]:
    """A branch's matrices by role, on a device, None for the host; empty without a branch."""
    found = spec.branch.tensors if spec.branch else {}
    return {role: torch.from_numpy(values.copy()).to(device) for role, values in found.items()}


def low_rank(x: torch.Tensor, branch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a branch adds for x [..., K], of x's type: its matrices are float16."""
    down, up = (branch[role].to(x) for role in LowRank.roles)
    return x @ down @ up


class SimulatedLinear(torch.nn.Module):
    """A linear layer that computes with quantized weights and, if asked for, quantized activations.

    It computes in float32, and gives what it received.

    Args:
        layer: codes and scales.
        bias: [N] or None.
        kept: whether the weight stays in memory; else it is made for every call.
        device: where it stays.
    """

    bias: torch.Tensor | None
    _kept: torch.Tensor | None
    rounds = True
    """Whether activations are quantized, where the layer's specification says so."""

    def __init__(
        self,
        layer: QuantizedLayer,
        bias: torch.Tensor | None,
        *,
        kept: bool = True,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.in_features, self.out_features = layer.k, layer.n
        weight = torch.from_numpy(layer.weight()).to(device) if kept else None
        self.register_buffer("_kept", weight)
        self._branch = branch_tensors(layer.spec, device if kept else None)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    @classmethod
    def of(cls, layer: QuantizedLayer, linear: torch.nn.Linear) -> SimulatedLinear:
        """What takes the place of `linear`.

        A network that reads its blocks when they run is not to hold their weights either.
        """
        device = linear.weight.device
        return cls(layer, linear.bias, kept=not is_fake(linear.weight), device=device)

    @property
    def weight(self) -> torch.Tensor:
        """Float32 [N, K]."""
        kept = self._kept
        return torch.from_numpy(self.layer.weight()) if kept is None else kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N], of x's type."""
        wide = x.float()
        y = self._computed(wide)
        if self._branch:
            y = y + low_rank(wide, self._branch)
        return y.to(x.dtype)

    def _computed(self, x: torch.Tensor) -> torch.Tensor:
        """In float32."""
        spec, weight = self.layer.spec, self.weight.to(x.device)
        fmt, size = spec.activation_format, spec.activation_group_size
        x = transformed(x, spec.input_ops)
        bias = None if self.bias is None else self.bias.float()
        if fmt is None or not self.rounds:
            return torch.nn.functional.linear(x, weight, bias)
        assert spec.input is not None
        q, scale = quantize_activations(x, spec.input)
        if scale.shape[-1] > 1:
            assert size is not None
            q, scale = q * expand_groups(scale, q.shape[-1], size), scale.new_ones(())
        y = torch.nn.functional.linear(q, weight) * scale
        return y if bias is None else y + bias


def weights_only(layer: QuantizedLayer, linear: torch.nn.Linear) -> SimulatedLinear:
    """What takes the place of `linear`: quantized weights, float activations."""
    return SimulatedLinear.of(replace(layer, spec=replace(layer.spec, input=None)), linear)


def simulate(network: torch.nn.Module, state: QuantizedState) -> None:
    """Replace the linears of `network` that `state` holds and quantize its attentions, in place.

    Raises:
        UsageError: the network has no such linear or attention, or a linear of another shape.
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
        place(network, name, SimulatedLinear.of(layer, linear))
    for name, fmt in state.attention.items():
        module = attention_module(network, name)
        module.forward = QuantizedAttention(module.forward, format_by_name(fmt))


@contextmanager
def simulated(network: torch.nn.Module, state: QuantizedState) -> Iterator[torch.nn.Module]:
    """`network` with `state` in place, restored on exit."""
    modules: dict[str, Any] = dict(network.named_modules())
    originals = {name: modules[name] for name in state.layers if name in modules}
    attentions = [modules[name] for name in state.attention if name in modules]
    forwards = [vars(module).get("forward") for module in attentions]
    try:
        simulate(network, state)
        yield network
    finally:
        for name, module in originals.items():
            place(network, name, module)
        for module, forward in zip(attentions, forwards, strict=True):
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


@contextmanager
def unquantized(network: torch.nn.Module) -> Iterator[None]:
    """While open, a simulation's activations are float; its weights stay quantized."""
    roundings: list[SimulatedLinear | QuantizedAttention] = [
        *(m for m in network.modules() if isinstance(m, SimulatedLinear)),
        *(m.forward for m in network.modules() if isinstance(m.forward, QuantizedAttention)),
    ]
    try:
        for rounding in roundings:
            rounding.rounds = False
        yield
    finally:
        for rounding in roundings:
            rounding.rounds = True
