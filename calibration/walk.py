"""What units receive and give along the recorded samples, in the float and in the quantized network.

Blocks are in memory one at a time; results that later ones read wait on disk, as the network's
topology says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from fp4dit_onnx.calibration.evidence import Part, outputs_of
from fp4dit_onnx.calibration.samples import Array, Call, Samples, Tape, by_sample
from fp4dit_onnx.calibration.simulate import weights_only
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.network.blocks import block_of
from fp4dit_onnx.network.execution import Execution
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.network.placing import replaced
from fp4dit_onnx.network.topology import Node, Topology, Value
from fp4dit_onnx.spec.state import QuantizedLayer

__all__ = ["Walk", "chunk_size"]

LARGEST_CHUNK = 64
FLOAT, QUANTIZED = "float", "quantized"
"""Names of the two networks, of which results are kept."""


@dataclass(frozen=True)
class Walk:
    """Two networks, from unit to unit.

    Attributes:
        network: in float, left as it was.
        topology: of it for the calls in `samples`.
        samples: the network's own arguments.
        work: where everything goes.
        chunk: samples that are run at a time.
    """

    network: Network
    topology: Topology
    samples: Samples
    work: Work
    chunk: int

    def targets(self, name: str) -> dict[int, Array]:
        """Places of a unit's results in the float network, of those that something reads."""
        return {i: self._array(FLOAT, (name, i)) for i in self._read(self.topology.by_name[name])}

    def write_targets(self, name: str) -> None:
        """Write what a unit gives in the float network."""
        part = Part.of(name, self.network)
        writer = _Writer(part.module, self.targets(name), self.samples.count, part.parts.execution)
        self._each(self.topology.by_name[name], FLOAT, writer)

    def write_inputs(
        self, name: str, layers: Mapping[str, QuantizedLayer] | None, place: str
    ) -> Samples:
        """Write what a unit receives.

        Args:
            name: of the unit.
            layers: what is quantized, where those of blocks count by `write_results` alone; None for
                the float network.
            place: of the folder among the work.
        """
        node = self.topology.by_name[name]
        tape = Tape(self.work.clear(place), self.samples.count, node.rows if node.block else {})

        def visit(chunk: slice, call: Call) -> None:
            tape.write(chunk.start, call, chunk.stop - chunk.start)

        kind = FLOAT if layers is None else QUANTIZED
        with replaced(self.network.module, self._around(layers or {})):
            self._each(node, kind, visit)
        samples = self.samples
        return tape.finish(samples.weight, paired=samples.paired, execution=samples.execution)

    @torch.no_grad()
    def write_results(self, name: str, layers: Iterable[QuantizedLayer], inputs: Samples) -> None:
        """Write what a unit gives in the quantized network: what later ones receive.

        Args:
            name: of the unit; a linear gives nothing, it runs with what is around the blocks.
            layers: of the unit, quantized.
            inputs: what it receives there.
        """
        node = self.topology.by_name[name]
        if not node.block:
            return
        part = Part.of(name, self.network)
        with part.quantized(layers):
            arrays = {i: self._array(QUANTIZED, (name, i)) for i in self._read(node)}
            write = _Writer(part.module, arrays, inputs.count, part.parts.execution)
            for chunk in inputs.chunks(self.chunk):
                write(chunk, inputs.take(chunk))

    def tidy(self, name: str, unsolved: Iterable[str] = ()) -> None:
        """Delete results that nothing after the unit `name` reads.

        Args:
            name: of the last unit that was run.
            unsolved: units whose targets are still to be read.
        """
        live, kept = self.topology.live_after(name), frozenset(unsolved)
        for node in self.topology.nodes:
            for value in ((node.name, i) for i in range(len(node.results))):
                if value not in live:
                    kinds = (QUANTIZED,) if node.name in kept else (FLOAT, QUANTIZED)
                    for kind in kinds:
                        self.work.clear(self._array(kind, value).path.name)
            if node.name == name:
                return

    def _array(self, kind: str, value: Value) -> Array:
        name, number = value
        path = self.work.folder / f"{kind}.{name}.{number}.npy"
        return Array(path, self.network.execution)

    def _reader(self, kind: str, chunk: slice) -> Callable[[Value], torch.Tensor]:
        """Gives results as the network itself passes them on."""
        cast = self.network.execution.cast
        return lambda value: cast(self._array(kind, value).read(chunk))

    def _read(self, node: Node) -> tuple[int, ...]:
        """Numbers of the node's results that something reads; a linear has but one."""
        live = self.topology.live_after(node.name)
        return tuple(
            i for i in range(len(node.results)) if not node.block or (node.name, i) in live
        )

    @torch.no_grad()
    def _each(self, node: Node, kind: str, visit: Callable[[slice, Call], None]) -> None:
        """Hand over what the node receives in one of the networks, samples by samples."""
        for chunk in self.samples.chunks(self.chunk):
            count = chunk.stop - chunk.start
            reached = self.network.reach(
                self.topology,
                node.name,
                self.samples.take(chunk),
                count,
                self._reader(kind, chunk),
            )
            if node.block:
                visit(chunk, ((), reached.arguments))
                continue
            (x,) = reached.tensors
            rows = node.rows.get(0, 1)  # a table is shown to each sample
            visit(chunk, ((by_sample(x, rows) if rows else x.expand(count, *x.shape),), {}))

    def _around(self, layers: Mapping[str, QuantizedLayer]) -> dict[str, torch.nn.Module]:
        """Stand-ins for what is quantized and runs around the blocks."""
        return {
            name: weights_only(layer, self._linear(name))
            for name, layer in layers.items()
            if block_of(name, self.network.blocks) is None
            or f"{name}.weight" in self.topology.shared
        }

    def _linear(self, layer: str) -> torch.nn.Linear:
        linear = self.network.module.get_submodule(layer)
        assert isinstance(linear, torch.nn.Linear), layer
        return linear


@dataclass(frozen=True)
class _Writer:
    """Writes results of `module` to `arrays` by their numbers, chunk by chunk."""

    module: torch.nn.Module
    arrays: Mapping[int, Array]
    count: int
    where: Execution

    def __call__(self, chunk: slice, call: Call) -> None:
        outputs = outputs_of(self.module, call, tuple(self.arrays), self.where)
        for array, output in zip(self.arrays.values(), outputs, strict=True):
            if chunk.start == 0:
                array.create(self.count, output)
            array.write(chunk.start, output)


def chunk_size(max_ram: int, unit_bytes: int) -> int:
    """Samples to run at a time so that a unit's arguments and outputs stay within `max_ram`."""
    return max(1, min(LARGEST_CHUNK, max_ram // max(1, unit_bytes)))
