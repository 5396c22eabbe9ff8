"""Walking a network unit by unit: what each one receives, in float and quantized so far.

A unit is a transformer block (a child of a ``ModuleList``) or a linear outside of them. Blocks that
are done are not run again: the last one's recorded output stands for all of them, since each block
takes the one before as its first argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fp4dit_onnx.calibration.samples import Array, Call, Samples
from fp4dit_onnx.calibration.simulate import place
from fp4dit_onnx.errors import UsageError

__all__ = ["Unit", "replaced", "run_to", "units_of"]


@dataclass(frozen=True)
class Unit:
    """What is calibrated at a time.

    Attributes:
        name: torch name of the block or of the linear.
        layers: names of its linears.
        block: whether its output is the next block's first argument.
    """

    name: str
    layers: tuple[str, ...]
    block: bool


class _Reached(Exception):  # noqa: N818 - no error: it leaves a network early
    """Raised to leave a network once the module of interest was called."""


def _unit_name(network: torch.nn.Module, layer: str) -> tuple[str, bool]:
    parts = layer.split(".")
    for i in range(1, len(parts)):
        parent = network.get_submodule(".".join(parts[:i]))
        if isinstance(parent, torch.nn.ModuleList) and i + 1 < len(parts):
            return ".".join(parts[: i + 1]), True
    return layer, False


def units_of(network: torch.nn.Module, layers: Sequence[str], call: Call) -> tuple[Unit, ...]:
    """The units that hold `layers`, in the order in which the network calls them.

    Args:
        network: the transformer.
        layers: names of the linears to quantize.
        call: arguments to run it with once.

    Raises:
        UsageError: a layer is never called.
    """
    groups: dict[tuple[str, bool], list[str]] = {}
    for layer in layers:
        groups.setdefault(_unit_name(network, layer), []).append(layer)
    order: list[str] = []
    handles = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda *_, name=name: order.append(name)
        )
        for name, _ in groups
    ]
    try:
        with torch.no_grad():
            network(*call[0], **call[1])
    finally:
        for handle in handles:
            handle.remove()
    idle = next((name for name, _ in groups if name not in order), None)
    if idle is not None:
        raise UsageError(f"layer {idle} was never run while sampling: exclude it with a rule")
    ranked = sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    return tuple(Unit(name, tuple(found), block) for (name, block), found in ranked)


class _Replay(torch.nn.Module):
    """Stands for the blocks that are done: gives the last one's recorded output."""

    def __init__(self, output: Array) -> None:
        super().__init__()
        self._output = output
        self.chunk = slice(0)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._output.read(self.chunk)


@contextmanager
def replaced(
    network: torch.nn.Module, modules: dict[str, torch.nn.Module]
) -> Iterator[torch.nn.Module]:
    """`network` with other modules in some places, restored on exit."""
    originals = {name: network.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            place(network, name, module)
        yield network
    finally:
        for name, module in originals.items():
            place(network, name, module)


@torch.no_grad()
def run_to(
    network: torch.nn.Module,
    unit: Unit,
    samples: Samples,
    chunk: int,
    visit: Callable[[slice, Call], None],
    *,
    done: Sequence[str] = (),
    output: Array | None = None,
) -> None:
    """Run `network` on all samples as far as `unit`, and hand over what the unit receives.

    Args:
        network: float, or quantized so far.
        unit: where to stop.
        samples: the network's own arguments.
        chunk: samples at a time.
        visit: takes the samples' slice and the unit's arguments.
        done: names of the blocks before it.
        output: of the last of them, [N, ...].
    """
    replay = None if output is None else _Replay(output)
    now = slice(0)

    def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        visit(now, (args, kwargs))
        raise _Reached

    module = network.get_submodule(unit.name)
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with replaced(network, {} if replay is None else dict.fromkeys(done, replay)):
            for now in samples.chunks(chunk):
                if replay is not None:
                    replay.chunk = now
                args, kwargs = samples.take(now)
                try:
                    network(*args, **kwargs)
                except _Reached:
                    continue
    finally:
        handle.remove()
