"""A network's blocks: finding them, their calls, and replacing their results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = [
    "Answer",
    "BlockCall",
    "answer_with",
    "answered",
    "block_names",
    "block_of",
    "tensors_of",
]


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors of nested tuples, lists and dictionaries, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def block_names(network: torch.nn.Module) -> tuple[str, ...]:
    """Members of the network's outermost lists of modules that hold linears, in the modules' order."""
    names: list[str] = []

    def walk(path: str, module: torch.nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ModuleList):
                members = child.named_children()
                names.extend(f"{path}{name}.{i}" for i, block in members if _is_block(block))
            else:
                walk(f"{path}{name}.", child)

    walk("", network)
    return tuple(names)


def _is_block(module: torch.nn.Module) -> bool:
    inside = (m for m in module.modules() if m is not module)
    return any(isinstance(m, torch.nn.Linear) for m in inside)


def block_of(name: str, blocks: Iterable[str]) -> str | None:
    """The block that the module or tensor called `name` is in, or is; None outside of them."""
    return next((b for b in blocks if name == b or name.startswith(f"{b}.")), None)


@dataclass(frozen=True)
class BlockCall:
    """One call of a block.

    Attributes:
        name: of the block.
        module: the block.
        leaves: of the arguments by name of the block's parameters, tensors and others.
        spec: puts the leaves together again.
    """

    name: str
    module: torch.nn.Module
    leaves: list[Any]
    spec: pytree.TreeSpec

    @classmethod
    def of(
        cls, name: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> BlockCall:
        """The call with every argument under the name of its parameter."""
        signature = inspect.signature(type(module).forward)
        given = dict(signature.bind(module, *args, **kwargs).arguments)
        del given[next(iter(signature.parameters))]
        given.update(given.pop("kwargs", {}))
        return cls(name, module, *pytree.tree_flatten(given))

    @property
    def arguments(self) -> dict[str, Any]:
        """By name."""
        return self.with_tensors(self.tensors)

    def with_tensors(self, tensors: Iterable[torch.Tensor]) -> dict[str, Any]:
        """The arguments with other tensors in the places of `tensors`."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(v, torch.Tensor) else v for v in self.leaves]
        found: dict[str, Any] = pytree.tree_unflatten(leaves, self.spec)
        return found

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Those among the leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]

    def kind(self) -> tuple[object, ...]:
        """Equal for blocks that have the same graph."""
        tensors = self.module.state_dict(keep_vars=True).items()
        return (
            type(self.module),
            tuple((name, tuple(t.shape)) for name, t in tensors),
            tuple(
                (str(tuple(leaf.shape)), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
                for leaf in self.leaves
            ),
            str(self.spec),
        )


Answer = Callable[[BlockCall], Any]
"""Gives what a block returns for a call."""


def answer_with(network: torch.nn.Module, blocks: Iterable[str], answer: Answer) -> None:
    """From now on, a call of one of `blocks` gives what `answer` returns; the block does not run."""
    for name in blocks:
        module: Any = network.get_submodule(name)
        module.forward = _asking(name, module, answer)


def _asking(name: str, module: torch.nn.Module, answer: Answer) -> Callable[..., Any]:
    return lambda *args, **kwargs: answer(BlockCall.of(name, module, args, kwargs))


@contextmanager
def answered(network: torch.nn.Module, blocks: Iterable[str], answer: Answer) -> Iterator[None]:
    """`answer_with` while open."""
    modules: dict[str, Any] = {name: network.get_submodule(name) for name in blocks}
    before = {name: vars(module).get("forward") for name, module in modules.items()}
    answer_with(network, modules, answer)
    try:
        yield
    finally:
        for name, module in modules.items():
            del module.forward
            if before[name] is not None:
                module.forward = before[name]
