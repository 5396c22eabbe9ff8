"""A network as a shell, which stays in memory, and blocks, which are made when they are needed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fp4dit_onnx.network.blocks import BlockCall, answered, block_names
from fp4dit_onnx.network.execution import HOST, Execution, host
from fp4dit_onnx.network.fake import is_fake, like
from fp4dit_onnx.network.topology import Result, Topology, Value, topology_of

__all__ = ["Call", "Network", "whole"]

Call = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of the network."""


class _Reached(Exception):  # noqa: N818 - no error: it leaves a network early
    """Raised to leave a network with the call of the node of interest."""

    def __init__(self, call: BlockCall) -> None:
        super().__init__(call.name)
        self.call = call


@dataclass(frozen=True)
class Network:
    """A network whose blocks need not be in memory.

    Attributes:
        module: the network; it can be run. Tensors of its blocks may be fake.
        blocks: names of the blocks.
        read: gives the values of a tensor by its name, in float32 on the host.
        execution: where and in which type the network is run; its tensors are there.
        forget: lets go of values that stayed in memory, where running the network often is over.
    """

    module: torch.nn.Module
    blocks: tuple[str, ...]
    read: Callable[[str], torch.Tensor]
    execution: Execution = HOST
    forget: Callable[[], None] = lambda: None

    def tensor(self, name: str) -> torch.Tensor:
        """Values of a stored tensor, such as ``proj_out.weight``, on the host; not to be changed."""
        return self.read(name)

    def materialize(self, name: str, execution: Execution | None = None) -> torch.nn.Module:
        """A copy of the block or other module called `name`, with values; hooks are copied too.

        Args:
            name: torch name.
            execution: device and type of its tensors, the network's by default; tensors that have
                both are shared.
        """
        wanted = execution or self.execution
        module = self.module.get_submodule(name)
        memo: dict[int, Any] = {}
        for path, tensor in (*module.named_parameters(), *module.named_buffers()):
            full = f"{name}.{path}" if name else path
            rounded = isinstance(tensor, torch.nn.Parameter) and tensor.dtype != wanted.dtype
            value = self.read(full) if rounded or is_fake(tensor) else tensor.detach()
            memo[id(tensor)] = like(tensor, wanted.cast(value))
        made = copy.deepcopy(module, memo)
        vars(made).pop("forward", None)  # a stand-in's, of the original
        return made

    def topology(self, call: Call, batch: int) -> Topology:
        """See `topology_of`."""
        return topology_of(self.module, self.blocks, call, batch)

    def reach(
        self,
        topology: Topology,
        name: str,
        call: Call,
        batch: int,
        value: Callable[[Value], torch.Tensor],
    ) -> BlockCall:
        """What the block or linear called `name` receives in a call of the network.

        Args:
            topology: of the network for such calls.
            name: of a node of it.
            call: the network's arguments.
            batch: samples of the call.
            value: gives results of earlier blocks, [batch, *row]; asked only for those that the
                node's arguments are computed of. Blocks do not run.
        """
        node = topology.by_name[name]

        def leave(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(BlockCall.of(name, module, args, kwargs))

        module = self.module.get_submodule(name)
        hook = None if node.block else module.register_forward_pre_hook(leave, with_kwargs=True)
        try:
            self._replay(topology, call, batch, node.reads, value, name)
        except _Reached as reached:
            return reached.call
        finally:
            if hook is not None:
                hook.remove()
        raise AssertionError(f"{name} was not called")

    def finish(
        self,
        topology: Topology,
        call: Call,
        batch: int,
        value: Callable[[Value], torch.Tensor],
    ) -> Any:
        """What the network returns, of the results of its blocks; arguments as those of `reach`."""
        return self._replay(topology, call, batch, topology.output, value)

    def _replay(
        self,
        topology: Topology,
        call: Call,
        batch: int,
        needed: frozenset[Value],
        value: Callable[[Value], torch.Tensor],
        until: str = "",
    ) -> Any:
        def answer(at: BlockCall) -> Any:
            if at.name == until:
                raise _Reached(at)
            node = topology.by_name[at.name]
            tensors = [
                value(key) if key in needed else self._blank(result, batch)
                for key, result in zip(node.values, node.results, strict=True)
            ]
            return pytree.tree_map_only(int, tensors.__getitem__, node.structure)

        args, kwargs = call
        with answered(self.module, self.blocks, answer):
            return self.module(*args, **kwargs)

    def _blank(self, result: Result, batch: int) -> torch.Tensor:
        """Stands for a tensor that nobody reads: without memory, and NaN for whoever reads it still."""
        value = float("nan") if result.dtype.is_floating_point else 0
        one = torch.full((), value, dtype=result.dtype, device=self.execution.device)
        return one.expand(batch, *result.row)


def whole(module: torch.nn.Module) -> Network:
    """A network that is in memory, on the host in float32."""

    def read(name: str) -> torch.Tensor:
        path, _, last = name.rpartition(".")
        found: torch.Tensor = getattr(module.get_submodule(path), last)
        return host(found)

    return Network(module, block_names(module), read)
