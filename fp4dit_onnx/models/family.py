"""The description of a family of diffusion transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fp4dit_onnx.errors import CheckpointError

__all__ = ["Family", "InputSpec", "family_of"]

Config = Mapping[str, Any]


@dataclass(frozen=True)
class InputSpec:
    """One input of the exported transformer.

    Attributes:
        name: diffusers' own name.
        dtype: numpy name of the element type.
        dims: one entry an axis: a key of the transformer's config (its value is the size), a fixed
            size, or the name of a dynamic axis (``batch``, ``text``).
    """

    name: str
    dtype: str
    dims: tuple[str | int, ...]

    def shape(self, config: Config, dynamic: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given sizes of the dynamic axes."""
        return tuple(
            d if isinstance(d, int) else dynamic[d] if d in dynamic else int(config[d])
            for d in self.dims
        )


@dataclass(frozen=True)
class Family:
    """What the tool knows of one family.

    Attributes:
        name: shown to users.
        pipelines: diffusers pipeline classes of the family.
        transformer: diffusers transformer class.
        inputs: inputs of the transformer for a config, in graph order.
        arguments: turns named inputs into keyword arguments of the transformer's forward.
        paper_rules: weight format of each layer after FP4DiT, as (pattern, format), first match wins.
        sampling: defaults of the pipeline: steps and guidance, max_sequence_length.
        pipeline_options: keyword arguments that make the diffusers pipeline deterministic and local.
        skip: layers that stay in float, as (pattern, reason).
    """

    name: str
    pipelines: tuple[str, ...]
    transformer: str
    inputs: Callable[[Config], tuple[InputSpec, ...]]
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    paper_rules: tuple[tuple[str, str], ...]
    sampling: Mapping[str, Any]
    pipeline_options: Mapping[str, Any] = field(default_factory=dict)
    skip: tuple[tuple[str, str], ...] = ()


def family_of(pipeline_class: str, transformer_class: str) -> Family:
    """The family of a pipeline.

    Raises:
        CheckpointError: the pipeline or its transformer is of no known family.
    """
    from fp4dit_onnx.models.table import FAMILIES

    for family in FAMILIES:
        if pipeline_class in family.pipelines and transformer_class == family.transformer:
            return family
    known = ", ".join(p for family in FAMILIES for p in family.pipelines)
    raise CheckpointError(
        f"no known model family: found pipeline {pipeline_class} with transformer "
        f"{transformer_class}, expected one of {known}"
    )
