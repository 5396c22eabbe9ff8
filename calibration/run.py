"""Calibration from start to end: record inputs, quantize every layer, measure what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fp4dit_onnx import compare
from fp4dit_onnx.calibration.capture import CallRecorder, record_inputs
from fp4dit_onnx.calibration.methods import quantize_layer
from fp4dit_onnx.calibration.simulate import SimulatedLinear, simulated
from fp4dit_onnx.methods import Method
from fp4dit_onnx.progress import Reporter
from fp4dit_onnx.recipe import LayerSpec
from fp4dit_onnx.state import QuantizedLayer, QuantizedState

__all__ = ["Calibration", "LayerError", "calibrate", "sqnr_db"]

ROWS_PER_CALL = 4
MEASURED_CALLS = 4
"""Calls of the network, spread over the trajectory, on which the whole simulation is measured."""


@dataclass(frozen=True)
class LayerError:
    """Signal over quantization noise of one layer, in dB.

    Attributes:
        weight: of the weight itself.
        output: of the layer's output on the recorded inputs, activations quantized too.
    """

    weight: float
    output: float


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    Attributes:
        state: the quantized layers.
        errors: of each layer, by name.
        model_sqnr_db: of the whole network's output, simulation against float, on calls of the
            float sampler's trajectory.
    """

    state: QuantizedState
    errors: Mapping[str, LayerError]
    model_sqnr_db: float


def sqnr_db(signal: torch.Tensor, approximation: torch.Tensor) -> float:
    """`compare.sqnr_db` of two tensors."""
    return compare.sqnr_db(signal.detach().numpy(), approximation.detach().numpy())


def _measure(linear: torch.nn.Linear, layer: QuantizedLayer, rows: torch.Tensor) -> LayerError:
    approximation = SimulatedLinear(layer, linear.bias)
    return LayerError(
        sqnr_db(linear.weight.float(), approximation.weight),
        sqnr_db(linear(rows), approximation(rows)),
    )


@torch.no_grad()
def calibrate(
    network: torch.nn.Module,
    specs: Mapping[str, LayerSpec],
    method: Method,
    sample: Callable[[Callable[[], None]], object],
    *,
    calls: int,
    seed: int,
    provenance: Mapping[str, Any],
    reporter: Reporter,
) -> Calibration:
    """Quantize the linears of a float transformer.

    Args:
        network: float32 transformer, left as it was.
        specs: name -> specification of each linear to quantize.
        method: rounding method.
        sample: runs the float sampler over the calibration prompts; calls its argument once after
            each call of the network.
        calls: how many calls that will be, for the progress bar.
        seed: of the choice of rows.
        provenance: goes into the state as it is.
        reporter: progress.

    Raises:
        UsageError: a weight or an activation is not finite, or a layer was never run.
    """
    recorder = CallRecorder(network, [calls * i // MEASURED_CALLS for i in range(MEASURED_CALLS)])
    try:
        with reporter.stage("recording layer inputs", calls) as advance:
            inputs = record_inputs(
                network,
                tuple(specs),
                lambda: sample(lambda: advance(1)),
                rows_per_call=ROWS_PER_CALL,
                seed=seed,
            )
    finally:
        recorder.close()
    layers: dict[str, QuantizedLayer] = {}
    errors: dict[str, LayerError] = {}
    with reporter.stage("quantizing layers", len(specs)) as advance:
        for name, spec in specs.items():
            linear = network.get_submodule(name)
            assert isinstance(linear, torch.nn.Linear), name
            layers[name] = quantize_layer(name, linear.weight.float(), inputs[name], spec, method)
            errors[name] = _measure(linear, layers[name], inputs[name])
            advance(1)
    state = QuantizedState(layers, provenance)
    return Calibration(state, errors, _model_sqnr(network, state, recorder))


def _model_sqnr(network: torch.nn.Module, state: QuantizedState, recorder: CallRecorder) -> float:
    def outputs() -> torch.Tensor:
        return torch.cat([network(*a, **k)[0].flatten() for a, k in recorder.calls])

    signal = outputs()
    with simulated(network, state):
        return sqnr_db(signal, outputs())
