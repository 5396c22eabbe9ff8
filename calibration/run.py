"""Calibration from start to end: record inputs, quantize every layer, measure the errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch

from fp4dit_onnx.bundle.manifest import Compared, Spent
from fp4dit_onnx.calibration.applying import check_weight, quantize_layer
from fp4dit_onnx.calibration.blockwise import Blockwise, chunk_size
from fp4dit_onnx.calibration.capture import CallRecorder, record_inputs
from fp4dit_onnx.calibration.choosing import Choosing, Chosen
from fp4dit_onnx.calibration.importance import step_importance
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.moments import MomentRecorder, Moments
from fp4dit_onnx.calibration.record import (
    Sampler,
    SampleRecorder,
    check_disk,
    choose,
    first_call,
    part_of,
)
from fp4dit_onnx.calibration.samples import Call, Samples, nbytes
from fp4dit_onnx.calibration.simulate import SimulatedLinear, simulated
from fp4dit_onnx.calibration.stages import INPUTS, MOMENTS, Stage
from fp4dit_onnx.calibration.stages.nearest import Nearest
from fp4dit_onnx.calibration.transforming import transformed_weight
from fp4dit_onnx.calibration.units import Unit, sample_bytes, units_of
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.network.topology import Topology
from fp4dit_onnx.numbers import compare
from fp4dit_onnx.spec.spec import LayerSpec, TensorSpec
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState
from fp4dit_onnx.system.progress import Reporter, SilentReporter

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
        compared: sets of choices that were compared, if there were choices.
        spent: what became of a budget, None for none.
    """

    state: QuantizedState
    errors: Mapping[str, LayerError]
    model_sqnr_db: float
    compared: tuple[Compared, ...] = ()
    spent: Spent | None = None


def sqnr_db(signal: torch.Tensor, approximation: torch.Tensor) -> float:
    """`compare.sqnr_db` of two tensors."""
    return compare.sqnr_db(signal.detach().numpy(), approximation.detach().numpy())


def _measure(network: Network, layer: QuantizedLayer, rows: torch.Tensor) -> LayerError:
    linear = network.materialize(layer.name)
    assert isinstance(linear, torch.nn.Linear), layer.name
    approximation = SimulatedLinear(layer, linear.bias)
    return LayerError(
        sqnr_db(transformed_weight(linear.weight, layer.spec.input_ops), approximation.weight),
        sqnr_db(linear(rows), approximation(rows)),
    )


@dataclass(frozen=True)
class _Recorded:
    """The results of one run of the float sampler.

    Attributes:
        rows: input rows of each layer, float32 [R, K].
        calls: some calls of the network.
        samples: arguments of the network to train and compare on, None where no stage needs data.
        moments: second moments of layers' inputs, None where no stage needs them.
    """

    rows: Mapping[str, torch.Tensor]
    calls: Sequence[Call]
    samples: Samples | None
    moments: Moments | None = None


@torch.no_grad()
def calibrate(
    network: Network,
    specs: Mapping[str, LayerSpec],
    method: Method,
    sampler: Sampler,
    *,
    seed: int,
    provenance: Mapping[str, Any],
    reporter: Reporter,
    attention: Mapping[str, str] = MappingProxyType({}),
    candidates: Mapping[str, Sequence[str]] = MappingProxyType({}),
    precisions: Mapping[str, Sequence[TensorSpec]] = MappingProxyType({}),
    work: Work | None = None,
    max_ram: int = 2**31,
) -> Calibration:
    """Quantize the linears of a float transformer.

    Args:
        network: transformer, left as it was.
        specs: name -> specification of each linear to quantize.
        method: its stages, and what they are to be shown.
        sampler: the float sampler over the calibration prompts.
        seed: of every random choice.
        provenance: goes into the state as it is.
        reporter: progress.
        attention: name -> format of each attention whose q, k and v are quantized; goes into the
            state as it is.
        candidates: layer -> weight formats among which a stage may choose.
        precisions: layer -> what its weight may be under the method's budget.
        work: folder for what is recorded and for finished units; needed where a stage looks at inputs.
        max_ram: bytes of recorded activations that may be in memory at a time.

    Raises:
        UsageError: a weight or an activation is not finite, a layer was never run, the disk is too
            small for what is to be recorded, or a budget cannot be kept.
    """
    for name in specs:
        check_weight(name, network.tensor(f"{name}.weight"))
    chosen: Chosen | None = None
    if not method.needs_data:
        recorded = _record(network, specs, method, sampler, seed, reporter, None)
        sampler.close()
        network.forget()
        layers = _quantized(network, specs, method.stages, reporter)
    else:
        assert work is not None, "a work folder is needed"
        topology, units, chunk = _prepared(network, specs, method, sampler, work, max_ram)
        recorded = _record(network, specs, method, sampler, seed, reporter, work)
        sampler.close()
        network.forget()
        assert recorded.samples is not None
        if recorded.moments is not None:
            chosen = Choosing(
                network=network,
                specs=specs,
                method=method,
                moments=recorded.moments,
                samples=recorded.samples,
                guidance=sampler.guidance,
                attention=attention,
                candidates=candidates,
                precisions=precisions,
                work=work,
                chunk=chunk,
                reporter=reporter,
            ).run(units)
            layers = chosen.layers
            specs = {name: layers[name].spec for name in specs}
        if method.needs(INPUTS):
            layers = Blockwise(
                network=network,
                topology=topology,
                specs=specs,
                method=method,
                moments=recorded.moments,
                samples=recorded.samples,
                guidance=sampler.guidance,
                work=work,
                chunk=chunk,
                seed=seed,
                reporter=reporter,
            ).run(units)
    errors = {n: _measure(network, layers[n], recorded.rows[n]) for n in specs}
    state = QuantizedState({n: layers[n] for n in specs}, provenance, attention)
    measured = _model_sqnr(network.module, state, recorded.calls)
    if chosen is None:
        return Calibration(state, errors, measured)
    return Calibration(state, errors, measured, chosen.compared, chosen.spent)


def _quantized(
    network: Network,
    specs: Mapping[str, LayerSpec],
    stages: Sequence[Stage],
    reporter: Reporter,
) -> dict[str, QuantizedLayer]:
    """Layers by stages that look at weights alone."""
    layers = {}
    with reporter.stage("quantizing layers", len(specs), "layers") as advance:
        for name, spec in specs.items():
            layers[name] = quantize_layer(name, network.tensor(f"{name}.weight"), spec, stages)
            advance(1)
    return layers


def _prepared(
    network: Network,
    specs: Mapping[str, LayerSpec],
    method: Method,
    sampler: Sampler,
    work: Work,
    max_ram: int,
) -> tuple[Topology, tuple[Unit, ...], int]:
    """Units in order and samples per chunk, once the disk is known to be large enough."""
    call = part_of(first_call(network.module, sampler), torch.arange(1))
    topology = network.topology(call, 1)
    units = units_of(topology, network.blocks, tuple(specs))
    memory, disk = sample_bytes(topology)
    samples = method.data.samples
    if work.load("recorded") is None:
        widths = [network.module.get_parameter(f"{name}.weight").shape[1] for name in specs]
        sums = sum(4 * width * width for width in widths)
        needed = samples * (nbytes(call) + disk) + (sums if method.needs(MOMENTS) else 0)
        check_disk(work.folder, needed, samples)
    return topology, units, chunk_size(max_ram, memory)


def _record(
    network: Network,
    specs: Mapping[str, LayerSpec],
    method: Method,
    sampler: Sampler,
    seed: int,
    reporter: Reporter,
    work: Work | None,
) -> _Recorded:
    """Run the float sampler once and keep what calibration looks at; a kept run is read again."""
    if work is not None and (kept := work.load("recorded")) is not None:
        return _read(kept, work)
    chosen = moments = None
    if work is not None:
        with reporter.stage("measuring the importance of denoising steps", 1) as advance:
            importance = _importance(network, specs, method, sampler)
            advance(1)
        choice = choose(sampler, method.data.samples, importance, method.data.even, seed)
        chosen = SampleRecorder(
            network.module, choice, work.clear("inputs"), paired=sampler.paired
        )
        if method.needs(MOMENTS):
            guided, folder = method.data.guided, work.clear("moments")
            moments = MomentRecorder(
                network.module, tuple(specs), sampler, importance, guided, folder, seed
            )
    what = "sampling with the float model"
    if work is None:
        what = f"{what} to measure errors (--no-measure skips that)"
    which = [sampler.calls * i // MEASURED_CALLS for i in range(MEASURED_CALLS)]
    recorder = CallRecorder(network.module, which)
    try:
        with reporter.stage(what, sampler.calls, "denoising steps") as advance:
            rows = record_inputs(
                network.module,
                tuple(specs),
                lambda: sampler.sample(lambda: advance(1)),
                rows_per_call=ROWS_PER_CALL,
                seed=seed,
            )
    finally:
        for hooks in (recorder, chosen, moments):
            if hooks is not None:
                hooks.close()
    if work is None or chosen is None:
        return _Recorded(rows, recorder.calls, None)
    work.save("samples", chosen.samples())
    found = moments and moments.moments().to_json()
    work.save("recorded", {"rows": dict(rows), "calls": recorder.calls, "moments": found})
    return _read(work.load("recorded"), work)


def _read(kept: Mapping[str, Any], work: Work) -> _Recorded:
    """The results of a run of the float sampler in the work folder."""
    moments = kept["moments"] and Moments.from_json(kept["moments"], work.folder)
    return _Recorded(kept["rows"], kept["calls"], work.load_samples("samples"), moments)


def _importance(
    network: Network,
    specs: Mapping[str, LayerSpec],
    method: Method,
    sampler: Sampler,
) -> Sequence[float]:
    if sampler.probe is None:
        return [1.0] * sampler.steps
    weights_only = {name: replace(spec, input=None) for name, spec in specs.items()}
    stages = (method.range, Nearest())
    state = QuantizedState(_quantized(network, weights_only, stages, SilentReporter()))
    found = step_importance(network.module, state, sampler.probe, sampler.steps, sampler.guidance)
    result: list[float] = found.tolist()
    return result


def _model_sqnr(network: torch.nn.Module, state: QuantizedState, calls: Sequence[Call]) -> float:
    def outputs() -> torch.Tensor:
        return torch.cat([network(*a, **k)[0].flatten() for a, k in calls])

    signal = outputs()
    with simulated(network, state):
        return sqnr_db(signal, outputs())
