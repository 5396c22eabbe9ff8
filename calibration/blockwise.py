"""Calibrating a network unit by unit, each against its float self (FP4DiT section "calibration").

A unit's inputs come from the network quantized so far, its target from the float network, both along
the trajectory of the float sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fp4dit_onnx.calibration.methods import quantize_layer
from fp4dit_onnx.calibration.reconstruct import (
    Objective,
    adaptive,
    output_of,
    train_rounding,
)
from fp4dit_onnx.calibration.samples import Array, Call, Samples, Tape
from fp4dit_onnx.calibration.simulate import SimulatedLinear
from fp4dit_onnx.calibration.walk import Unit, replaced, run_to
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.methods import AdaRound, Method
from fp4dit_onnx.progress import Reporter
from fp4dit_onnx.recipe import LayerSpec
from fp4dit_onnx.state import QuantizedLayer

__all__ = ["Blockwise", "chunk_size"]

LARGEST_CHUNK = 64
CHOICE_PAIRS = 32
"""Pairs of samples on which formats are compared."""


@dataclass
class Blockwise:
    """A calibration over all units.

    Attributes:
        network: the float transformer, left as it was.
        specs: name -> specification of each linear.
        method: grid, rounding and range.
        samples: the network's own arguments.
        guidance: of the sampler.
        candidates: weight formats to choose among, by layer; a layer that is not in it keeps its own.
        work: where everything goes.
        chunk: samples that are run at a time.
        seed: of the mini-batches.
        reporter: progress.
    """

    network: torch.nn.Module
    specs: Mapping[str, LayerSpec]
    method: Method
    samples: Samples
    guidance: float
    candidates: Mapping[str, Sequence[str]]
    work: Work
    chunk: int
    seed: int
    reporter: Reporter

    def run(self, units: Sequence[Unit]) -> dict[str, QuantizedLayer]:
        """Quantize the layers of `units`, in order; finished ones are read from the work folder."""
        layers: dict[str, QuantizedLayer] = {}
        self._blocks: list[str] = []
        self._last: str | None = None
        with self.reporter.stage("calibrating", len(units), "blocks") as advance:
            self._advance = advance
            for number, unit in enumerate(units):
                known = self.work.finished(unit.name)
                if known is None:
                    found, error = self._unit(number, unit, layers)
                    self.work.finish(unit.name, found, error)
                    self.reporter.note(f"{unit.name}: error {error:.3f} of nearest rounding")
                else:
                    found, _ = known
                    advance(1, timed=False)
                layers |= found
                if unit.block:
                    self._drop_streams(keep=unit.name)
                    self._blocks.append(unit.name)
                    self._last = unit.name
        return layers

    def _stream(self, kind: str, block: str) -> Array:
        return Array(self.work.folder / f"{kind}.{block}.npy")

    def _drop_streams(self, keep: str) -> None:
        for kind in ("float", "quantized"):
            if self._last is not None and self._last != keep:
                self.work.clear(f"{kind}.{self._last}.npy")

    def _unit(
        self, number: int, unit: Unit, layers: Mapping[str, QuantizedLayer]
    ) -> tuple[dict[str, QuantizedLayer], float]:
        target = self._target(unit)
        inputs = self._inputs(unit, layers)
        rounding = self.method.rounding
        guided = rounding.guided if isinstance(rounding, AdaRound) else 1.0
        objective = Objective(inputs, target, self.guidance, guided)
        specs = self._chosen(unit, objective)
        found, error = self._quantize(number, unit, specs, objective)
        if unit.block:
            self._advance_stream(unit, inputs, found)
        else:
            self.work.clear(f"float.{unit.name}.npy")
        self.work.clear("arguments")
        return found, error

    def _target(self, unit: Unit) -> Array:
        """Outputs of the float unit in the float network, on disk."""
        target = self._stream("float", unit.name)
        self.work.clear(f"float.{unit.name}.npy")
        module = self.network.get_submodule(unit.name)
        inner = module.forward

        def visit(chunk: slice, call: Call) -> None:
            output = output_of(inner, call)
            if chunk.start == 0:
                target.create(self.samples.count, output)
            target.write(chunk.start, output)

        self._walk(unit, visit, "float")
        return target

    def _inputs(self, unit: Unit, layers: Mapping[str, QuantizedLayer]) -> Samples:
        """What the unit receives in the network quantized so far, on disk."""
        tape = Tape(self.work.clear("arguments"), self.samples.count)

        def visit(chunk: slice, call: Call) -> None:
            tape.write(chunk.start, call, chunk.stop - chunk.start)

        outside = {n: layer for n, layer in layers.items() if not self._in_block(n)}
        with replaced(self.network, self._simulations(outside)):
            self._walk(unit, visit, "quantized")
        return tape.finish(self.samples.weight, paired=self.samples.paired)

    def _in_block(self, layer: str) -> bool:
        return any(layer.startswith(f"{block}.") for block in self._blocks)

    def _walk(self, unit: Unit, visit: Callable[[slice, Call], None], kind: str) -> None:
        output = None if self._last is None else self._stream(kind, self._last)
        run_to(
            self.network, unit, self.samples, self.chunk, visit, done=self._blocks, output=output
        )

    def _simulations(self, layers: Mapping[str, QuantizedLayer]) -> dict[str, torch.nn.Module]:
        """Stand-ins for linears: quantized weights, float activations."""
        return {
            name: SimulatedLinear(
                replace(layer, spec=replace(layer.spec, activation=None)),
                self._linear(name).bias,
            )
            for name, layer in layers.items()
        }

    def _linear(self, name: str) -> torch.nn.Linear:
        linear = self.network.get_submodule(name)
        assert isinstance(linear, torch.nn.Linear), name
        return linear

    def _nearest(self, name: str, spec: LayerSpec) -> QuantizedLayer:
        return quantize_layer(name, self._linear(name).weight.float(), spec, self.method.range)

    def _chosen(self, unit: Unit, objective: Objective) -> dict[str, LayerSpec]:
        """Each layer's specification, in the candidate format with the least output error."""
        specs = {name: self.specs[name] for name in unit.layers}
        for name in unit.layers:
            options = [replace(specs[name], weight=w) for w in self.candidates.get(name, ())]
            if options:
                errors = [self._error(unit, objective, name, option) for option in options]
                losses = [float(objective.loss(e, errors[0].clamp(min=1e-30))) for e in errors]
                specs[name] = options[losses.index(min(losses))]
        return specs

    def _error(self, unit: Unit, objective: Objective, name: str, spec: LayerSpec) -> torch.Tensor:
        """Output errors of the unit with one of its layers rounded to nearest."""
        with replaced(self.network, self._simulations({name: self._nearest(name, spec)})):
            module = self.network.get_submodule(unit.name)
            return objective.total(module, self.chunk // 2 or 1, CHOICE_PAIRS)

    def _quantize(
        self, number: int, unit: Unit, specs: Mapping[str, LayerSpec], objective: Objective
    ) -> tuple[dict[str, QuantizedLayer], float]:
        rounding = self.method.rounding
        if not isinstance(rounding, AdaRound):
            self._advance(1, unit.name)
            return {name: self._nearest(name, spec) for name, spec in specs.items()}, 1.0
        step = 1 / rounding.iterations
        with adaptive(self.network, specs, rounding, self.method.range) as linears:
            module = self.network.get_submodule(unit.name)
            error = train_rounding(
                module,
                linears,
                objective,
                rounding,
                seed=self.seed + number,
                on_step=lambda loss: self._advance(step, f"{unit.name}, error {loss:.3f}"),
            )
            return {linear.name: linear.harden() for linear in linears}, error

    @torch.no_grad()
    def _advance_stream(
        self, unit: Unit, inputs: Samples, layers: Mapping[str, QuantizedLayer]
    ) -> None:
        """Outputs of the quantized block: the next one's inputs."""
        self.work.clear(f"quantized.{unit.name}.npy")
        stream = self._stream("quantized", unit.name)
        with replaced(self.network, self._simulations(layers)):
            module = self.network.get_submodule(unit.name)
            for chunk in inputs.chunks(self.chunk):
                output = output_of(module, inputs.take(chunk))
                if chunk.start == 0:
                    stream.create(inputs.count, output)
                stream.write(chunk.start, output)


def chunk_size(max_ram: int, unit_bytes: int) -> int:
    """Samples to run at a time so that a unit's arguments and outputs stay within `max_ram`."""
    return max(1, min(LARGEST_CHUNK, max_ram // max(1, unit_bytes)))
