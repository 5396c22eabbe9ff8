"""Calibrating a network unit by unit, each against its float self (FP4DiT section "calibration").

A unit's inputs come from the network quantized so far, its target from the float network, both along
the trajectory of the float sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fp4dit_onnx.calibration.applying import apply_stages, nearest_under
from fp4dit_onnx.calibration.draft import Draft, Drafts, finished
from fp4dit_onnx.calibration.evidence import FloatUnit, Objective, output_of
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.samples import Array, Call, Samples, Tape
from fp4dit_onnx.calibration.simulate import weights_only
from fp4dit_onnx.calibration.stages import Evidence
from fp4dit_onnx.calibration.walk import Unit, replaced, run_to
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer
from fp4dit_onnx.system.progress import Reporter

__all__ = ["Blockwise", "chunk_size"]

LARGEST_CHUNK = 64


@dataclass
class Blockwise:
    """A calibration over all units.

    Attributes:
        network: the float transformer, left as it was.
        specs: name -> specification of each linear.
        method: its stages are applied to each unit.
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
        objective = Objective(inputs, target, self.guidance, self.method.data.guided)
        drafts = self._quantize(number, unit, objective)
        found = finished(drafts)
        if unit.block:
            self._advance_stream(unit, inputs, found)
        else:
            self.work.clear(f"float.{unit.name}.npy")
        self.work.clear("arguments")
        return found, next((d.error for d in drafts.values() if d.error is not None), 1.0)

    def _quantize(self, number: int, unit: Unit, objective: Objective) -> Drafts:
        """The unit's layers after every stage of the method."""
        drafts: Drafts = {
            name: Draft(
                name,
                self._linear(name).weight.detach().float(),
                self.specs[name],
                tuple(self.candidates.get(name, ())),
            )
            for name in unit.layers
        }
        share = 1 / max(1, self.method.iterations)
        evidence = Evidence(
            nearest=nearest_under(self.method.range),
            unit=FloatUnit(self.network, unit.name, objective, self.chunk),
            seed=self.seed + number,
            on_step=lambda error: self._advance(share, f"{unit.name}, error {error:.3f}"),
        )
        drafts = apply_stages(self.method.stages, drafts, evidence)
        if not self.method.iterations:
            self._advance(1, unit.name)
        return drafts

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
        return {n: weights_only(layer, self._linear(n).bias) for n, layer in layers.items()}

    def _linear(self, name: str) -> torch.nn.Linear:
        linear = self.network.get_submodule(name)
        assert isinstance(linear, torch.nn.Linear), name
        return linear

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
