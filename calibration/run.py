"""Calibration from start to end: record inputs, quantize every layer, measure the errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch

from fp4dit_onnx.bundle.calibration_notes import Compared, Spent
from fp4dit_onnx.bundle.manifest import Outliers
from fp4dit_onnx.calibration.applying import check_weight, quantize_layers
from fp4dit_onnx.calibration.batches import Source
from fp4dit_onnx.calibration.blockwise import Blockwise, Recipes, Same
from fp4dit_onnx.calibration.choosing import Choosing, Chosen
from fp4dit_onnx.calibration.evidence import Parts
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.outliers import outliers_of
from fp4dit_onnx.calibration.record import Sampler, check_disk, first_call, part_of
from fp4dit_onnx.calibration.recording import begun, record
from fp4dit_onnx.calibration.samples import Call, nbytes
from fp4dit_onnx.calibration.simulate import SimulatedLinear, simulated
from fp4dit_onnx.calibration.solving import UnitRecipe
from fp4dit_onnx.calibration.stages import INPUTS, MAXIMA, MOMENTS
from fp4dit_onnx.calibration.timing import Pace, PacedRecipes, paced_recipes
from fp4dit_onnx.calibration.transforming import target_weight, transformed_weight
from fp4dit_onnx.calibration.units import Unit, sample_bytes, units_of
from fp4dit_onnx.calibration.walk import Walk, chunk_size
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.network.execution import host
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.network.topology import Topology, with_rows
from fp4dit_onnx.numbers import compare
from fp4dit_onnx.numbers.outliers import kurtosis
from fp4dit_onnx.spec.spec import LayerSpec, TensorSpec
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState
from fp4dit_onnx.system.executors import LOCAL, Executor
from fp4dit_onnx.system.progress import Reporter
from fp4dit_onnx.system.resources import return_memory

__all__ = ["Calibration", "LayerError", "calibrate", "sqnr_db"]


@dataclass(frozen=True)
class LayerError:
    """Signal over quantization noise of one layer, in dB.

    Attributes:
        weight: of the weight itself.
        output: of the layer's output on the recorded inputs, activations quantized too.
        weight_kurtosis: of the float weight.
        outliers: of its inputs, and what would help.
    """

    weight: float
    output: float
    weight_kurtosis: float
    outliers: Outliers


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
        method: with the iterations that were run, the mean where blocks had unlike ones.
    """

    state: QuantizedState
    errors: Mapping[str, LayerError]
    model_sqnr_db: float
    method: Method
    compared: tuple[Compared, ...] = ()
    spent: Spent | None = None


def _unlimited() -> float:
    return math.inf


def sqnr_db(signal: torch.Tensor, approximation: torch.Tensor) -> float:
    """`compare.sqnr_db` of two tensors of any device."""
    return compare.sqnr_db(host(signal).numpy(), host(approximation).numpy())


def _measure(network: Network, layer: QuantizedLayer, rows: torch.Tensor) -> LayerError:
    linear = network.materialize(layer.name, replace(network.execution, dtype=torch.float32))
    assert isinstance(linear, torch.nn.Linear), layer.name
    approximation, there = SimulatedLinear.of(layer, linear), network.execution.there(rows)
    weight, output = network.tensor(f"{layer.name}.weight"), linear(there)
    wanted = transformed_weight(weight, layer.spec.input_ops)
    rounded = approximation.weight
    if layer.spec.branch is not None:
        rounded = rounded + (wanted - target_weight(weight, layer.spec)).to(rounded.device)
    return LayerError(
        weight=sqnr_db(wanted, rounded),
        output=sqnr_db(output, approximation(there)),
        weight_kurtosis=kurtosis(weight.numpy()),
        outliers=outliers_of(layer.spec, rows, weight, output),
    )


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
    executor: Executor = LOCAL,
    parts: Parts | None = None,
    source: Source | None = None,
    pace: Pace | None = None,
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
        executor: where images are generated and units are solved.
        parts: gives the parts of the network there; by default the network itself.
        source: gives network and sampler there; None to generate images here.
        pace: settles how many iterations there are; by default those of the method.

    Raises:
        UsageError: a weight or an activation is not finite, a layer was never run, the disk is too
            small for what is to be recorded, or a budget cannot be kept.
    """
    for name in specs:
        check_weight(name, network.tensor(f"{name}.weight"))
    with reporter.stage("encoding the prompts", 1) as advance:
        sampler.prepare()
        return_memory()
        advance(1)
    chosen: Chosen | None = None
    if not method.needs_data:
        recorded = record(network, specs, method, sampler, seed, reporter, None)
        sampler.close()
        network.forget()
        layers = quantize_layers(network, specs, method.stages, reporter)
    else:
        assert work is not None, "a work folder is needed"
        prepared = _prepared(network, specs, method, sampler, work, max_ram, executor.ahead - 1)
        topology, units, chunk = prepared
        recorded = record(network, specs, method, sampler, seed, reporter, work, executor, source)
        if method.evolution is None:
            sampler.close()
        network.forget()
        return_memory()
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
                executor=executor,
                parts=parts or network,
                sample=sampler.probe,
                seed=seed,
                left=_unlimited if pace is None else pace.search,
            ).run(units)
            sampler.close()
            layers = chosen.layers
            specs = {name: layers[name].spec for name in specs}
        if method.needs(INPUTS):
            walk = Walk(network, topology, recorded.samples, work, chunk)
            recipe = UnitRecipe(
                parts=parts or network,
                specs=specs,
                stages=method.after_choices,
                moments=recorded.moments,
                guidance=sampler.guidance,
                guided=method.data.guided,
            )
            recipes: Recipes = Same(recipe)
            if pace is not None:
                recipes = paced_recipes(pace, method, walk, recipe, units, seed)
            layers = Blockwise(
                walk=walk,
                recipes=recipes,
                inputs=method.data.inputs,
                work=work,
                executor=executor,
                seed=seed,
                reporter=reporter,
            ).run(units)
            if isinstance(recipes, PacedRecipes):
                method, iterations = recipes.usual, recipes.iterations
                provenance = {**provenance, "method": method.to_json(), "iterations": iterations}
    errors = {}
    with reporter.stage("measuring layers", len(specs), "layers") as advance:
        for name in specs:
            errors[name] = _measure(network, layers[name], recorded.rows[name])
            advance(1)
    state = QuantizedState({n: layers[n] for n in specs}, provenance, attention)
    measured = _model_sqnr(network, state, recorded.calls, reporter)
    if chosen is None:
        return Calibration(state, errors, measured, method)
    return Calibration(state, errors, measured, method, chosen.compared, chosen.spent)


def _prepared(
    network: Network,
    specs: Mapping[str, LayerSpec],
    method: Method,
    sampler: Sampler,
    work: Work,
    max_ram: int,
    waiting: int,
) -> tuple[Topology, tuple[Unit, ...], int]:
    """Units in order and samples per chunk, once the disk is known to be large enough."""
    first = first_call(network.module, sampler)
    call, two = (part_of(first, torch.zeros(n, dtype=torch.int64), sampler.tables) for n in (1, 2))
    topology = with_rows(network.topology(call, 1), network.topology(two, 2))
    units = units_of(topology, network.blocks, tuple(specs))
    memory, disk = sample_bytes(topology, waiting)
    samples = method.data.samples
    if not begun(work):
        shapes = {name: network.module.get_parameter(f"{name}.weight").shape for name in specs}
        codes = sum(n * specs[name].code_bytes(k) for name, (n, k) in shapes.items())
        widths = [k for _, k in shapes.values()]
        sums = (2 + waiting) * sum(4 * width * width for width in widths)  # of all, and of a batch
        if method.needs(MAXIMA):
            sums += 4 * sum(widths) * sampler.calls * sampler.batch * (2 if sampler.paired else 1)
        needed = samples * (2 * nbytes(call) + disk) + (sums if method.needs(MOMENTS) else 0)
        needed += codes  # of layers rounded to nearest, and then of finished units
        check_disk(work.folder, needed, samples)
    return topology, units, chunk_size(int(min(max_ram, network.execution.limit / 2)), memory)


def _model_sqnr(
    network: Network, state: QuantizedState, calls: Sequence[Call], reporter: Reporter
) -> float:
    with reporter.stage("measuring the whole network", 2 * len(calls), "runs") as advance:

        def output(call: Call) -> torch.Tensor:
            args, kwargs = network.execution.there(call)
            found = host(network.module(*args, **kwargs)[0].float().flatten())
            return_memory()
            advance(1)
            return found

        def outputs() -> torch.Tensor:
            return torch.cat([output(call) for call in calls])

        signal = outputs()
        with simulated(network.module, state):
            return sqnr_db(signal, outputs())
