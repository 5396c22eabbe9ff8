"""Units of calibration, and the memory and disk space that they take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.network.blocks import block_of
from fp4dit_onnx.network.topology import Result, Topology, Value

__all__ = ["Unit", "sample_bytes", "units_of"]

SMALLEST = 4
"""Bytes of float32."""


@dataclass(frozen=True)
class Unit:
    """A block, or a linear to quantize outside of the blocks.

    Attributes:
        name: torch name of the block or of the linear.
        layers: names of its linears to quantize; a block may have none.
    """

    name: str
    layers: tuple[str, ...]


def units_of(topology: Topology, blocks: Sequence[str], layers: Iterable[str]) -> tuple[Unit, ...]:
    """All blocks and those of `layers` outside of them, in the order in which the network calls them.

    Raises:
        UsageError: a layer is never called.
    """
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(block_of(layer, blocks) or layer, []).append(layer)
    order = [node.name for node in topology.nodes]
    idle = next((name for name in groups if name not in order), None)
    if idle is not None:
        raise UsageError(f"layer {idle} was never run while sampling: exclude it with a rule")
    return tuple(
        Unit(node.name, tuple(groups.get(node.name, ())))
        for node in topology.nodes
        if node.block or node.name in groups
    )


def _bytes(result: Result) -> int:
    """Of a sample's result on disk and in training, where none is narrower than float32."""
    return prod(result.row) * max(SMALLEST, result.dtype.itemsize)


def sample_bytes(topology: Topology, waiting: int = 0) -> tuple[int, int]:
    """Bytes of one sample at the unit where they are most: in memory, and on disk.

    In memory are what a unit takes, what it gives and should give; on disk its arguments, and in
    float and quantized its results and those of others that are still to be read.

    Args:
        topology: of calls of one sample.
        waiting: how many units more may be recorded and not solved, at most: their arguments and
            targets are on disk too.
    """
    given = {
        value: _bytes(result)
        for node in topology.blocks
        for value, result in zip(node.values, node.results, strict=True)
    }
    memory = disk = 0
    own: list[int] = []
    live: Iterable[Value] = ()
    for node in topology.nodes:
        taken = sum(prod(t.shape) * t.dtype.itemsize for t in node.arguments)
        made = sum(map(_bytes, node.results))
        own.append(taken + made)
        memory = max(memory, taken + 3 * made)
        disk = max(disk, taken + 2 * made + 2 * sum(given[value] for value in live))
        live = topology.live_after(node.name)
    return memory, disk + sum(sorted(own)[-waiting:] if waiting else ())
