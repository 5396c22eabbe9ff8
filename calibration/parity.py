"""A bundle in torch: the simulation rebuilt from its files, and torch's own codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fp4dit_onnx.calibration.grid import quantize_rows, quantize_static
from fp4dit_onnx.calibration.simulate import simulate, unquantized
from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.families import Family
from fp4dit_onnx.network.dynamic import dynamic
from fp4dit_onnx.network.execution import HOST, Execution, host
from fp4dit_onnx.network.networks import diffusers_maker, refusals
from fp4dit_onnx.network.positions import arguments_of
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.spec.state import QuantizedState
from fp4dit_onnx.spec.transforms import transform_of

__all__ = ["Simulation", "network_runner", "torch_quantize"]

Array = npt.NDArray[Any]


def torch_quantize(x: Array, op: str, given: Mapping[str, Any]) -> tuple[Array, Array]:
    """The quantize operator `op` of these attributes, as the simulation computes it."""
    fmt, tensor = format_by_name(given["format"]), torch.from_numpy(x)
    if one := transform_of(op, given):
        tensor = one(tensor, torch)
    if "largest" in given:
        q, scale = quantize_static(tensor, fmt, given["largest"])
    else:
        q, scale = quantize_rows(tensor, fmt, given["group_size"], given["candidates"][1:])
    return q.numpy().astype(fmt.integer_type), scale.numpy()


class Simulation:
    """The simulation as a function of named inputs, from a bundle's own tensors.

    Args:
        family: of the transformer.
        config: its config.json.
        parameters: float tensors of the bundle by torch name; the quantized weights are in `state`.
        state: the quantized layers.

    Raises:
        BundleError: a parameter is neither in `parameters` nor in `state`, or of another shape.
    """

    def __init__(
        self,
        family: Family,
        config: Mapping[str, Any],
        parameters: Mapping[str, Array],
        state: QuantizedState,
    ) -> None:
        make = diffusers_maker(family.transformer, config)
        with refusals(family.transformer):
            network = make().float().eval()
        own = network.state_dict()
        missing = [
            name
            for name in own
            if name not in parameters and name.removesuffix(".weight") not in state.layers
        ]
        if missing:
            raise BundleError(f"the bundle holds no tensor for the transformer's {missing[0]}")
        given = {k: torch.from_numpy(np.array(parameters[k])) for k in own if k in parameters}
        try:
            network.load_state_dict(given, strict=False)
        except RuntimeError as error:
            raise BundleError(
                f"the bundle's tensors do not fit the transformer: {error}"
            ) from error
        simulate(network, state)
        self._network, self._run = network, network_runner(network, family)

    def __call__(self, inputs: Mapping[str, Array], *, float_activations: bool = False) -> Array:
        """The output; with `float_activations`, from quantized weights alone."""
        quantized = nullcontext() if not float_activations else unquantized(self._network)
        with quantized:
            return self._run(inputs)


def network_runner(
    network: torch.nn.Module, family: Family, execution: Execution = HOST
) -> Callable[[Mapping[str, Array]], Array]:
    """A torch transformer as a function of named numpy inputs, of any size.

    Args:
        network: where `execution` says.
        family: of it.
        execution: the type that latents and texts take there; times and sizes, [B], keep theirs.
    """
    interface = family.interface(network.config)  # type: ignore[arg-type]

    @torch.no_grad()
    def run(inputs: Mapping[str, Array]) -> Array:
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with dynamic(network):
            arguments = execution.there(arguments_of(interface, tensors))
            for name, value in arguments.items():
                arguments[name] = value if _is_scalar(value) else execution.cast(value)
            result: Array = host(network(**arguments)[0].float()).numpy()
        return result

    return run


def _is_scalar(value: Any) -> bool:
    """Whether an argument is one number per sample."""
    return isinstance(value, torch.Tensor) and value.ndim < 2
