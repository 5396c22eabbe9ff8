"""The description of a family of diffusion transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.files import shown

__all__ = ["DYNAMIC", "Family", "InputSpec", "Interface", "current_class", "family_of"]

Config = Mapping[str, Any]
DYNAMIC = ("batch", "text", "height", "width", "image")
"""Axes whose size is open in an exported graph: height and width of the latents, or their patches."""


RENAMED = {
    "Transformer2DModel": {
        "ada_norm_single": "PixArtTransformer2DModel",
        "ada_norm_zero": "DiTTransformer2DModel",
    }
}
"""Older class of diffusers -> ``norm_type`` of the config -> what it is called today."""


@dataclass(frozen=True)
class InputSpec:
    """One input of the exported transformer.

    Attributes:
        name: diffusers' own name.
        dtype: numpy name of the element type.
        dims: one entry an axis: a key of the transformer's config (its value is the size), a fixed
            size, or the name of a dynamic axis, one of `DYNAMIC`.
        values: numbers below which integers are drawn, or a key of the config; None for a mask. Of
            the timestep: the one at which there is nothing but noise, 1000 if None.
    """

    name: str
    dtype: str
    dims: tuple[str | int, ...]
    values: int | str | None = None

    def shape(self, config: Config, dynamic: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given sizes of the dynamic axes."""
        return tuple(
            d if isinstance(d, int) else dynamic[d] if d in dynamic else size_of(config, d)
            for d in self.dims
        )


def size_of(config: Config, key: str) -> int:
    """A size that the family cannot do without.

    Raises:
        CheckpointError: it is absent, null, or no whole number from 1.
    """
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"config.json of the transformer: {key} is {shown(value) if key in config else 'absent'}, "
            "expected a whole number from 1; download the file again"
        )
    return value


def _as_they_are(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(inputs)


@dataclass(frozen=True)
class Interface:
    """How a torch module is called, and what of it repeats.

    Attributes:
        inputs: in graph order.
        outputs: names of the graph's outputs, in the order in which the module gives them.
        arguments: turns named inputs into keyword arguments of the module's forward. It may compute
            further arguments from them in torch; they become part of the graph.
        blocks: name of a list of equal modules -> names of the arguments of their forward that
            their results are like, in order. Each kind of block is traced once.
        results: from what the module gives to the outputs; None takes those called as the outputs,
            or, of a tuple, the first.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...] = ("sample",)
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]] = _as_they_are
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    results: Callable[[Any], tuple[Any, ...]] | None = None

    def check(self, config: Config) -> None:
        """Refuse a config whose sizes of the inputs are none, before anything is built.

        Raises:
            CheckpointError: see `size_of`; what is absent, the class decides.
        """
        for spec in self.inputs:
            for key in (*spec.dims, spec.values):
                if isinstance(key, str) and key in config:
                    size_of(config, key)


@dataclass(frozen=True)
class Family:
    """What the tool knows of one family.

    Attributes:
        name: shown to users.
        pipelines: diffusers pipeline classes of the family.
        transformer: diffusers transformer class.
        interface: the transformer's for a config.
        paper_rules: weight format of each layer after FP4DiT, as (pattern, format), first match wins.
        sampling: defaults of the pipeline: steps and guidance, max_sequence_length; sample_size where
            the config has none.
        pipeline_options: keyword arguments that make the diffusers pipeline deterministic and local.
        skip: layers that stay in float, as (pattern, reason).
        attention: whether q, k and v can be quantized.
        calibrates: whether methods that need data can run its pipeline.
    """

    name: str
    pipelines: tuple[str, ...]
    transformer: str
    interface: Callable[[Config], Interface]
    paper_rules: tuple[tuple[str, str], ...]
    sampling: Mapping[str, Any]
    pipeline_options: Mapping[str, Any] = field(default_factory=dict)
    skip: tuple[tuple[str, str], ...] = ()
    attention: bool = True
    calibrates: bool = False


def current_class(class_name: str, config: Config) -> str:
    """What diffusers calls `class_name` today; the class itself where it was not renamed.

    Args:
        class_name: as model_index.json or config.json has it.
        config: the component's; its ``norm_type`` tells which class an older one became.
    """
    renamed = RENAMED.get(class_name, {})
    norm_type = config.get("norm_type")
    if renamed and norm_type is None:
        own = str(config.get("_class_name"))
        return own if own in renamed.values() else class_name
    return renamed.get(norm_type, class_name) if isinstance(norm_type, str) else class_name


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
