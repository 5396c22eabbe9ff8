"""Calibrating a network unit by unit, each against its float counterpart (FP4DiT section "calibration").

A unit's inputs come from the network quantized so far, its target from the float network, both along
the trajectory of the float sampler. Blocks are in memory one at a time; results that later ones read
wait on disk, as the network's topology says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fp4dit_onnx.calibration.applying import apply_stages, nearest_under
from fp4dit_onnx.calibration.draft import Draft, Drafts, finished
from fp4dit_onnx.calibration.evidence import FloatUnit, Objective, outputs_of
from fp4dit_onnx.calibration.layer_inputs import UnitInputs
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.moments import Moments
from fp4dit_onnx.calibration.samples import Array, Call, Samples, Tape
from fp4dit_onnx.calibration.simulate import weights_only
from fp4dit_onnx.calibration.stages import Evidence
from fp4dit_onnx.calibration.transforming import transformed_weight
from fp4dit_onnx.calibration.units import Unit
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.families.guidance import Guided
from fp4dit_onnx.network.blocks import block_of
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.network.placing import replaced
from fp4dit_onnx.network.topology import Node, Topology, Value
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer
from fp4dit_onnx.system.progress import Reporter

__all__ = ["Blockwise", "chunk_size"]

LARGEST_CHUNK = 64
FLOAT, QUANTIZED = "float", "quantized"
"""Names of the two networks, of which results are kept: as it was, and quantized so far."""


@dataclass
class Blockwise:
    """A calibration over all units.

    Attributes:
        network: in float, left as it was.
        topology: of it for the calls in `samples`.
        specs: name -> specification of each linear.
        method: its stages are applied to each unit.
        moments: of what layers receive in the float network, where a stage looks at them.
        samples: the network's own arguments.
        guidance: of the sampler.
        work: where everything goes.
        chunk: samples that are run at a time.
        seed: of the mini-batches.
        reporter: progress.
    """

    network: Network
    topology: Topology
    specs: Mapping[str, LayerSpec]
    method: Method
    moments: Moments | None
    samples: Samples
    guidance: Guided
    work: Work
    chunk: int
    seed: int
    reporter: Reporter

    def run(self, units: Sequence[Unit]) -> dict[str, QuantizedLayer]:
        """Quantize the layers of `units`, in order; finished ones are read from the work folder."""
        layers: dict[str, QuantizedLayer] = {}
        kept: frozenset[Value] = frozenset()
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
                live = self.topology.live_after(unit.name)
                self._drop((kept | set(self.topology.by_name[unit.name].values)) - live)
                kept = live
        return layers

    def _unit(
        self, number: int, unit: Unit, layers: Mapping[str, QuantizedLayer]
    ) -> tuple[dict[str, QuantizedLayer], float]:
        """The unit's layers and its error; its results are in the work folder afterwards."""
        node = self.topology.by_name[unit.name]
        module = self.network.materialize(unit.name)
        targets = self._targets(node, module)
        inputs = self._inputs(node, layers)
        objective = Objective(inputs, targets, self.guidance, self.method.data.guided)
        float_unit = FloatUnit.of(unit.name, module, objective, self.chunk)
        drafts = self._quantize(number, unit, float_unit)
        found = finished(drafts)
        if node.block:
            with float_unit.quantized(found.values()):
                self._write_results(node, float_unit.module, inputs)
        else:
            self._drop([(node.name, 0)])
        self.work.clear("arguments")
        return found, next((d.error for d in drafts.values() if d.error is not None), 1.0)

    def _quantize(self, number: int, unit: Unit, float_unit: FloatUnit) -> Drafts:
        """The unit's layers after every stage of the method."""
        drafts: Drafts = {}
        for name in unit.layers:
            weight, spec = float_unit.linear(name).weight.detach().float(), self.specs[name]
            weight = transformed_weight(weight, spec.input_ops)
            drafts = {**drafts, name: Draft(name, weight, spec)}
        if not drafts:
            self._advance(1, unit.name)
            return drafts
        share = 1 / max(1, self.method.iterations)
        evidence = Evidence(
            rounded=nearest_under(self.method.range),
            inputs=None if self.moments is None else UnitInputs(self.moments, self.network),
            unit=float_unit,
            seed=self.seed + number,
            on_step=lambda error: self._advance(share, f"{unit.name}, error {error:.3f}"),
        )
        drafts = apply_stages(self.method.after_choices, drafts, evidence)
        if not self.method.iterations:
            self._advance(1, unit.name)
        return drafts

    def _array(self, kind: str, value: Value) -> Array:
        name, number = value
        return Array(self.work.folder / f"{kind}.{name}.{number}.npy")

    def _reader(self, kind: str, chunk: slice) -> Callable[[Value], torch.Tensor]:
        return lambda value: self._array(kind, value).read(chunk)

    def _drop(self, values: Iterable[Value]) -> None:
        for name, number in values:
            for kind in (FLOAT, QUANTIZED):
                self.work.clear(f"{kind}.{name}.{number}.npy")

    def _read(self, node: Node) -> tuple[int, ...]:
        """Numbers of the node's results that something reads; a linear has but one."""
        live = self.topology.live_after(node.name)
        return tuple(
            i for i in range(len(node.results)) if not node.block or (node.name, i) in live
        )

    def _targets(self, node: Node, module: torch.nn.Module) -> dict[int, Array]:
        """Results of the float unit in the float network, on disk."""
        which = self._read(node)
        targets = {i: self._array(FLOAT, (node.name, i)) for i in which}
        self._walk(node, FLOAT, _Writer(module, targets, self.samples.count))
        return targets

    def _inputs(self, node: Node, layers: Mapping[str, QuantizedLayer]) -> Samples:
        """What the unit receives in the network quantized so far, on disk."""
        tape = Tape(self.work.clear("arguments"), self.samples.count)

        def visit(chunk: slice, call: Call) -> None:
            tape.write(chunk.start, call, chunk.stop - chunk.start)

        with replaced(self.network.module, self._around(layers)):
            self._walk(node, QUANTIZED, visit)
        return tape.finish(self.samples.weight, paired=self.samples.paired)

    @torch.no_grad()
    def _walk(self, node: Node, kind: str, visit: Callable[[slice, Call], None]) -> None:
        """Hand over what the node receives in one of the networks, samples by samples."""
        for chunk in self.samples.chunks(self.chunk):
            reached = self.network.reach(
                self.topology,
                node.name,
                self.samples.take(chunk),
                chunk.stop - chunk.start,
                self._reader(kind, chunk),
            )
            given = ((), reached.arguments) if node.block else (tuple(reached.tensors), {})
            visit(chunk, given)

    def _around(self, layers: Mapping[str, QuantizedLayer]) -> dict[str, torch.nn.Module]:
        """Stand-ins for what is quantized so far and runs around the blocks."""
        return {
            name: weights_only(layer, self._bias(name))
            for name, layer in layers.items()
            if block_of(name, self.network.blocks) is None
            or f"{name}.weight" in self.topology.shared
        }

    def _bias(self, layer: str) -> torch.Tensor | None:
        linear = self.network.module.get_submodule(layer)
        assert isinstance(linear, torch.nn.Linear), layer
        return linear.bias

    @torch.no_grad()
    def _write_results(self, node: Node, module: torch.nn.Module, inputs: Samples) -> None:
        """Results of the quantized block, on disk: what later ones receive."""
        arrays = {i: self._array(QUANTIZED, (node.name, i)) for i in self._read(node)}
        write = _Writer(module, arrays, inputs.count)
        for chunk in inputs.chunks(self.chunk):
            write(chunk, inputs.take(chunk))


@dataclass(frozen=True)
class _Writer:
    """Writes results of `module` to `arrays` by their numbers, chunk by chunk."""

    module: torch.nn.Module
    arrays: Mapping[int, Array]
    count: int

    def __call__(self, chunk: slice, call: Call) -> None:
        outputs = outputs_of(self.module, call, tuple(self.arrays))
        for array, output in zip(self.arrays.values(), outputs, strict=True):
            if chunk.start == 0:
                array.create(self.count, output)
            array.write(chunk.start, output)


def chunk_size(max_ram: int, unit_bytes: int) -> int:
    """Samples to run at a time so that a unit's arguments and outputs stay within `max_ram`."""
    return max(1, min(LARGEST_CHUNK, max_ram // max(1, unit_bytes)))
