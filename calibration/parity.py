"""What torch makes of a bundle: the simulation rebuilt from its files, and torch's own codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch

from fp4dit_onnx.calibration.grid import quantize_rows
from fp4dit_onnx.calibration.simulate import simulate
from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.formats import FloatFormat
from fp4dit_onnx.models import Family
from fp4dit_onnx.state import QuantizedState

__all__ = ["network_runner", "simulated_network", "torch_quantize"]

Array = npt.NDArray[Any]


def torch_quantize(x: Array, fmt: FloatFormat) -> tuple[Array, Array]:
    """`numerics.quantize` as the simulation computes it."""
    q, scale = quantize_rows(torch.from_numpy(x), fmt)
    return q.numpy().astype(fmt.integer_type), scale.numpy()


def simulated_network(
    family: Family,
    config: Mapping[str, Any],
    parameters: Mapping[str, Array],
    state: QuantizedState,
) -> Callable[[Mapping[str, Array]], Array]:
    """The simulation as a function of named inputs, from a bundle's own tensors.

    Args:
        family: of the transformer.
        config: its config.json.
        parameters: float tensors of the bundle by torch name; the quantized weights are in `state`.
        state: the quantized layers.

    Raises:
        BundleError: a parameter is neither in `parameters` nor in `state`, or of another shape.
    """
    network = getattr(diffusers, family.transformer).from_config(dict(config)).float().eval()
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
        raise BundleError(f"the bundle's tensors do not fit the transformer: {error}") from error
    simulate(network, state)

    return network_runner(network, family)


def network_runner(
    network: torch.nn.Module, family: Family
) -> Callable[[Mapping[str, Array]], Array]:
    """A torch transformer as a function of named numpy inputs."""

    @torch.no_grad()
    def run(inputs: Mapping[str, Array]) -> Array:
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        result: Array = network(**family.arguments(tensors), return_dict=False)[0].numpy()
        return result

    return run
