"""The networks of a checkpoint and its stored tensors brought together: what fits, what is left over."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from fp4dit_onnx.checkpoint.checkpoint import Checkpoint, Component
from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.checkpoint.tensor_reading import read_float32
from fp4dit_onnx.families.autoencoders import older_vae_name
from fp4dit_onnx.families.interface import Interface
from fp4dit_onnx.families.text_encoders import TEXT_ENCODERS
from fp4dit_onnx.files import CHECKPOINT, read_json
from fp4dit_onnx.network.blocks import block_names
from fp4dit_onnx.network.execution import HOST, Execution
from fp4dit_onnx.network.fake import unfilled
from fp4dit_onnx.network.network import Network, whole
from fp4dit_onnx.network.networks import (
    diffusers_maker,
    faked,
    refusals,
    stored_names,
    stored_tensors,
    text_encoder_maker,
    weights_of,
)
from fp4dit_onnx.network.streaming import StoredTensors, cast_rest, streamed
from fp4dit_onnx.system.silence import quiet

__all__ = ["StoredParts", "fitted", "hollow", "loaded", "opened", "rooted"]

SHOWN = 3
"""Names in a note."""


def fitted(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with the tensors that its networks have, by their names there, and no others.

    What is left out is noted, unless the network's class declares it to be of no use. The
    transformer's configuration has the class's default in place of what it does not say.

    Raises:
        CheckpointError: a configuration makes no network, or a tensor of one is absent, of another
            shape or type, or stored twice with different values.
    """
    parts, config = {}, checkpoint.transformer_config
    for name, part in checkpoint.components.items():
        if not part.tensors:
            parts[name] = part
            continue
        network = faked(part.class_name, _maker(part))
        parts[name] = _fitted(part, network.module)
        if name == "transformer":
            usual = {k: v for k, v in network.config.items() if not k.startswith("_")}
            config = {**usual, **config}
    return replace(checkpoint, components=parts, transformer_config=config)


def _fitted(part: Component, module: torch.nn.Module) -> Component:
    other = _other_name(part)
    stored_tensors(module, part.tensors, other)
    pairs = stored_names(module, part.tensors, other)
    own = {names[0]: part.tensors[places[0]] for names, places in pairs}
    used = {place for _, places in pairs for place in places}
    foreign = [n for n in part.tensors if n not in used and not _is_useless(n, module)]
    if not foreign:
        return replace(part, tensors=own)
    shown = ", ".join(foreign[:SHOWN]) + (" ..." if len(foreign) > SHOWN else "")
    note = f"{part.name}: tensors that {part.class_name} does not have are left out"
    return replace(part, tensors=own, notes=(*part.notes, f"{note} ({len(foreign)}): {shown}"))


def loaded(part: Component, execution: Execution = HOST) -> torch.nn.Module:
    """The network of a component with its weights, in evaluation mode, without gradients.

    Args:
        part: of a checkpoint.
        execution: device and type of its tensors.

    Raises:
        CheckpointError: as `fitted`.
    """
    return _filled(part, execution)[0]


def _filled(
    part: Component, execution: Execution
) -> tuple[torch.nn.Module, dict[str, TensorInfo]]:
    """The network, and where each of its tensors is stored."""
    with refusals(part.class_name):
        module = unfilled(_maker(part))
    found = stored_tensors(module, part.tensors, _other_name(part))
    read = {id(info): info for info in found.values()}
    values = {i: execution.cast(torch.from_numpy(read_float32(info))) for i, info in read.items()}
    with quiet():
        counts = {
            n: torch.zeros_like(t, device="cpu")
            for n, t in module.state_dict().items()
            if n not in found
        }
        module.load_state_dict({n: values[id(i)] for n, i in found.items()} | counts, assign=True)
    cast_rest(module, execution)
    return module, found


def hollow(part: Component, execution: Execution = HOST) -> torch.nn.Module:
    """The network of a component with zeros for its weights, which take no memory.

    It has a configuration, a type and a device, and is not to be run; arguments as `loaded`.

    Raises:
        CheckpointError: as `fitted`.
    """
    with refusals(part.class_name):
        module = unfilled(_maker(part))
    zero = execution.cast(torch.zeros(()))
    zeros = {name: zero.expand(t.shape) for name, t in module.state_dict().items()}
    module.load_state_dict(zeros, assign=True)
    return module


def opened(
    part: Component,
    interface: Interface,
    budget: float,
    execution: Execution = HOST,
    *,
    often: bool = True,
) -> Network:
    """The network of a component: in memory if it fits, else a shell that reads its blocks.

    Args:
        part: of a checkpoint.
        interface: of the network.
        budget: bytes that its tensors may take in memory; a shell's own come on top.
        execution: where it is run, and in which type; a device gives the room that it has.
        often: whether the network runs often, so that blocks that fit stay in memory.

    Raises:
        CheckpointError: as `fitted`.
    """
    size = execution.dtype.itemsize
    if sum(size * math.prod(i.shape) for i in part.tensors.values()) <= execution.room(budget):
        module, found = _filled(part, execution)
        made = whole(module)
        if execution == HOST:
            return made
        return replace(made, read=StoredTensors(found), execution=execution)
    fake = faked(part.class_name, _maker(part))
    found = stored_tensors(fake.module, part.tensors, _other_name(part))
    return streamed(fake, interface, StoredTensors(found, budget if often else 0), execution)


@dataclass(frozen=True, eq=False)
class StoredParts:
    """Gives the parts of a network straight from its files; a value that other machines can take.

    Attributes:
        part: of a checkpoint, with absolute paths.
        execution: where they are run, and in which type.
    """

    part: Component
    execution: Execution

    @classmethod
    def of(cls, part: Component, execution: Execution) -> StoredParts:
        """Those of the network of a component."""
        return cls(rooted(part), execution)

    def materialize(self, name: str, execution: Execution | None = None) -> torch.nn.Module:
        """See `Network.materialize`; raises as `fitted`."""
        return _blank(self).materialize(name, execution)

    def tensor(self, name: str) -> torch.Tensor:
        """See `Network.tensor`; raises as `fitted`."""
        return _blank(self).tensor(name)


def rooted(part: Component) -> Component:
    """A component with absolute paths."""
    files = {n: replace(t, file=t.file.absolute()) for n, t in part.tensors.items()}
    return replace(part, folder=part.folder.absolute(), tensors=files)


@lru_cache(maxsize=1)
def _blank(parts: StoredParts) -> Network:
    """The network without any value in memory."""
    part = parts.part
    fake = faked(part.class_name, _maker(part)).module
    found = stored_tensors(fake, part.tensors, _other_name(part))
    cast_rest(fake, parts.execution)
    return Network(fake, block_names(fake), StoredTensors(found), parts.execution)


def _maker(part: Component) -> Callable[[], torch.nn.Module]:
    config = read_json(
        part.folder / "config.json", f"the settings of {part.class_name}", CHECKPOINT
    )
    make = text_encoder_maker if part.name.startswith("text_encoder") else diffusers_maker
    return make(part.class_name, config)


def _other_name(part: Component) -> Callable[[str], str]:
    """From a tensor's name in the network to another that files may have."""
    if part.name.startswith("text_encoder"):
        prefix = TEXT_ENCODERS[part.class_name].prefix
        return lambda name: prefix + name
    return older_vae_name if part.name.startswith("vae") else str


def _is_useless(name: str, module: torch.nn.Module) -> bool:
    """Whether the class says so of a stored tensor, or computes it itself, as it does positions."""
    declared = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    if any(re.search(pattern, name) for pattern in declared):
        return True
    computed = {n for n, _ in module.named_buffers()} - weights_of(module).keys()
    last = name.rpartition(".")[2]
    return any(last == buffer.rpartition(".")[2] for buffer in computed)
