"""Networks whose blocks are read from the checkpoint every time they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.checkpoint.tensor_reading import read_float32
from fp4dit_onnx.families import Interface
from fp4dit_onnx.network.blocks import BlockCall, answer_with, block_names, block_of
from fp4dit_onnx.network.dynamic import dynamic
from fp4dit_onnx.network.execution import HOST, Execution
from fp4dit_onnx.network.fake import is_fake, like, own_tensors
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.network.networks import FakeNetwork, example_inputs
from fp4dit_onnx.network.positions import arguments_of
from fp4dit_onnx.network.topology import topology_of

__all__ = ["StoredTensors", "cast_rest", "streamed"]


class StoredTensors:
    """Reads tensors in float32 from their files; of those that `kept` reads the first ones stay.

    Args:
        tensors: by name.
        budget: bytes that may stay in memory.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo], budget: float = 0) -> None:
        self._tensors, self._left = tensors, budget
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, name: str) -> torch.Tensor:
        """Values of the tensor called `name`."""
        found = self._kept.get(name)
        return torch.from_numpy(read_float32(self._tensors[name])) if found is None else found

    def kept(self, name: str) -> torch.Tensor:
        """The same of a tensor that is needed often: it stays if there is room."""
        found = self(name)
        if name not in self._kept and found.nbytes <= self._left:
            self._left -= found.nbytes
            self._kept[name] = found
        return found

    def forget(self) -> None:
        """Let go of what stayed, and keep nothing from now on."""
        self._left = 0
        self._kept.clear()


def cast_rest(module: torch.nn.Module, execution: Execution) -> None:
    """Bring what no file holds to device and type, such as tables of positions; of fakes, the type."""
    if execution == HOST:
        return
    imaginary = Execution(dtype=execution.dtype)
    done: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for kept, name, tensor in own_tensors(module):
        if id(tensor) not in done:  # tied tensors stay one
            there = (imaginary if is_fake(tensor) else execution).cast(tensor.detach())
            done[id(tensor)] = tensor, like(tensor, there)
        kept[name] = done[id(tensor)][1]


def streamed(
    network: FakeNetwork, interface: Interface, read: StoredTensors, execution: Execution = HOST
) -> Network:
    """A network whose shell is in memory, and each of whose blocks is read again for every call.

    Args:
        network: becomes the shell.
        interface: how it is called.
        read: gives the values of its tensors.
        execution: device and type of the shell, and of blocks when they run.
    """
    module, blocks = network.module, block_names(network.module)
    with network.mode:
        inputs = example_inputs(interface, network.config)
        call = (), arguments_of(interface, inputs)
    with dynamic(module):
        shared = topology_of(module, blocks, call, batch=None).shared
    values: dict[int, torch.Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if is_fake(tensor) and (block_of(name, blocks) is None or name in shared):
            path, _, last = name.rpartition(".")
            if id(tensor) not in values:  # tied tensors stay one
                values[id(tensor)] = like(tensor, execution.cast(read(name)))
            setattr(module.get_submodule(path), last, values[id(tensor)])
    cast_rest(module, execution)
    running = Network(module, blocks, read.kept, execution)

    def run(call: BlockCall) -> Any:
        # Hooks of the block itself run around this call: not those of the copy.
        return running.materialize(call.name).forward(**call.arguments)

    answer_with(module, blocks, run)
    return Network(module, blocks, read, execution, read.forget)
