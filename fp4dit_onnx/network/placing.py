"""Putting modules in the places of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

__all__ = ["place", "replaced"]


def place(network: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    """Put `module` in the place of the submodule called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


@contextmanager
def replaced(
    network: torch.nn.Module, modules: Mapping[str, torch.nn.Module]
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
