"""How a network is called: its inputs, its outputs, and its lists of blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fp4dit_onnx.families.config import Config, size_of
from fp4dit_onnx.families.sources import Source

__all__ = [
    "DYNAMIC",
    "TIMESTEPS",
    "GridRotary",
    "InputSpec",
    "Interface",
]

DYNAMIC = ("batch", "text", "height", "width", "image")
"""Axes whose size is open in an exported graph: height and width of the latents, or their patches."""
TIMESTEPS = 1000
"""Of training, which a scheduler counts."""


def _always(config: Config) -> bool:
    return True


@dataclass(frozen=True)
class InputSpec:
    """One input of an exported network.

    Attributes:
        name: diffusers' own name.
        dtype: numpy name of the element type.
        dims: one entry per axis: a key of the network's config (its value is the size), a fixed
            size, or the name of a dynamic axis, one of `DYNAMIC`.
        values: numbers below which integers are, or a key of the config; None for a mask. Of the
            timestep: the one at which there is nothing but noise, `TIMESTEPS` if None.
        source: where it comes from; None for the latents, the timestep, and what is not known.
        when: whether a network of a config has it.
        padded: of a mask, whether what it hides always lies at the end, as the network assumes.
        multiple: what its height and width are multiples of: pixels a latent, of images.
    """

    name: str
    dtype: str
    dims: tuple[str | int, ...]
    values: int | str | None = None
    source: Source | None = None
    when: Callable[[Config], bool] = _always
    padded: bool = False
    multiple: int = 1

    def shape(self, config: Config, dynamic: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given sizes of the dynamic axes."""
        return tuple(
            d if isinstance(d, int) else dynamic[d] if d in dynamic else size_of(config, d)
            for d in self.dims
        )

    def unit(self, dim: str | int) -> int:
        """What the size of an axis of that name is a multiple of."""
        return self.multiple if dim in ("height", "width") else 1


@dataclass(frozen=True)
class GridRotary:
    """Rotary tables that pipelines compute outside of the transformer, and tracing in the graph.

    Attributes:
        argument: of the transformer's forward.
        patch: latents per patch, along one side.
        head_dim: channels of an attention head.
        base: side of the square, in patches, into which every grid is fitted.
    """

    argument: str
    patch: int
    head_dim: int
    base: int


@dataclass(frozen=True)
class Interface:
    """How a torch module is called, and its lists of blocks.

    Attributes:
        inputs: in graph order.
        outputs: names of the graph's outputs, in the order in which the module gives them.
        constants: arguments of the module's forward that are the same in every call.
        grouped: argument of the forward -> inputs that it takes as a dictionary, None for those that
            the network has not.
        rotary: further arguments, computed from the inputs' sizes while the module is traced.
        blocks: name of a list of equal modules -> names of the arguments of their forward that
            their results are like, in order. Each kind of block is traced once.
        results: from what the module gives to the outputs; None takes those named as the outputs,
            or, of a tuple, the first.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...] = ("sample",)
    constants: Mapping[str, Any] = field(default_factory=dict)
    grouped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rotary: tuple[GridRotary, ...] = ()
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    results: Callable[[Any], tuple[Any, ...]] | None = None

    @property
    def tables(self) -> frozenset[str]:
        """Arguments of the module's forward that are the same for all samples of a call."""
        own = {spec.name for spec in self.inputs if spec.dims[:1] != ("batch",)}
        return frozenset(own.union(self.constants, (rotary.argument for rotary in self.rotary)))

    def keywords(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the module's forward, of named inputs; `network.positions` adds `rotary`'s."""
        inside = {name for names in self.grouped.values() for name in names}
        plain = {name: value for name, value in given.items() if name not in inside}
        groups = {key: {n: given.get(n) for n in names} for key, names in self.grouped.items()}
        return {**plain, **groups, **self.constants}

    def check(self, config: Config) -> None:
        """Refuse a config whose sizes of the inputs are none, before anything is built.

        Raises:
            CheckpointError: see `size_of`; what is absent, the class decides.
        """
        for spec in self.inputs:
            for key in (*spec.dims, spec.values):
                if isinstance(key, str) and key in config:
                    size_of(config, key)
