"""The record of a family of diffusion transformers."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families.config import Config
from fp4dit_onnx.families.guidance import Guidance
from fp4dit_onnx.families.interface import (
    TIMESTEPS,
    GridRotary,
    InputSpec,
    Interface,
)
from fp4dit_onnx.families.latents import Latents
from fp4dit_onnx.families.request import (
    CHOSEN_LENGTH,
    Encode,
    Encoded,
    Feed,
    Request,
    Text,
    has_component,
)
from fp4dit_onnx.families.sources import Wanted
from fp4dit_onnx.prompts import general_prompts

__all__ = ["Blocks", "Family"]


@dataclass(frozen=True)
class Blocks:
    """A list of modules that the network runs one after another, and the roles of what is in them.

    Attributes:
        name: of the list.
        results: arguments of a block's forward that its results are like, in order.
        alike: whether equal blocks are called in the same way with the same results, so that each
            kind is traced once. Not so where sizes are given as numbers, or SD3's last block.
        readers: norm of a block, or argument of its forward, and linears that read one tensor, made of
            that by adaLN's scale and shift at most. Blocks of some models lack some of them.
        qkv: linears that make q, k and v of a softmax attention, which is the module that they are in.
            Those that make text's and image's halves of a joint one stand beside each other; one that
            makes all three stands three times.
        joined: linear whose input is several tensors side by side, and how many of equal width make
            it: one that no scale is to be shared across.
    """

    name: str
    results: tuple[str, ...]
    alike: bool = True
    readers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    qkv: tuple[tuple[str, str, str], ...] = ()
    joined: tuple[tuple[str, int], ...] = ()

    def holder(self, linear: str, layer: str) -> str | None:
        """The block that `layer` is in, if `linear` is its name there."""
        found = re.fullmatch(rf"({re.escape(self.name)}\.\d+)\.{re.escape(linear)}", layer)
        return found[1] if found else None


@dataclass(frozen=True)
class Family:
    """What the tool knows of one family.

    Attributes:
        name: shown to users.
        pipelines: diffusers pipeline classes of the family.
        transformer: diffusers transformer class.
        inputs: of every transformer of the family, in graph order.
        blocks: the lists of blocks.
        outer: role of layers outside of the blocks -> patterns of their names: few weights, whose
            errors reach everything.
        paper_rules: weight format of each layer after FP4DiT, as (pattern, format), first match wins.
        sampling: defaults of the pipeline: steps and guidance, max_sequence_length; sample_size where
            the config has none.
        grouped: see `Interface`.
        rotary: see `Interface`, for a config.
        guidance: how it follows the prompt.
        latents: how it takes them.
        largest_grid: side of the stored table of positions, in patches, of a config; None of other
            transformers, whose positions are computed for any size.
        sigmas_from_one: see `FlowPlan.from_one`.
        empirical_shift: see `FlowPlan.empirical`.
        reversed: whether the transformer is told how much of the sample is data, and gives data -
            noise: the opposite of what schedulers read.
        examples: prompts that every model of the family knows; none where it knows any text.
        pipeline_options: keyword arguments that make the diffusers pipeline deterministic and local.
        skip: layers that stay in float, as (pattern, reason).
        older: class of older files, and the ``norm_type`` that tells it from others of that class.
    """

    name: str
    pipelines: tuple[str, ...]
    transformer: str
    inputs: tuple[InputSpec, ...]
    blocks: tuple[Blocks, ...]
    outer: Mapping[str, tuple[str, ...]]
    paper_rules: tuple[tuple[str, str], ...]
    sampling: Mapping[str, Any]
    grouped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rotary: Callable[[Config], tuple[GridRotary, ...]] = lambda _: ()
    guidance: Guidance = field(default_factory=Guidance)
    latents: Latents = field(default_factory=Latents)
    largest_grid: Callable[[Config], int | None] = lambda _: None
    sigmas_from_one: bool = False
    empirical_shift: bool = False
    reversed: bool = False
    examples: tuple[str, ...] = ()
    pipeline_options: Mapping[str, Any] = field(default_factory=dict)
    skip: tuple[tuple[str, str], ...] = ()
    older: tuple[str, str] | None = None

    def interface(self, config: Config) -> Interface:
        """The transformer's, of a config."""
        return Interface(
            inputs=tuple(spec for spec in self.inputs if spec.when(config)),
            constants={"return_dict": False},
            grouped=self.grouped,
            rotary=self.rotary(config),
            blocks={blocks.name: blocks.results for blocks in self.blocks if blocks.alike},
        )

    def attentions(self, layers: Iterable[str], floats: Iterable[str] = ()) -> tuple[str, ...]:
        """Names of the softmax attentions whose q, k and v are made by `layers`, in their order.

        Args:
            layers: names of a transformer's linears.
            floats: of those that stay in float, and with each of them its attention.
        """
        kept = {self._attention(layer) for layer in floats}
        made = dict.fromkeys(map(self._attention, layers))
        return tuple(module for module in made if module is not None and module not in kept)

    def _attention(self, layer: str) -> str | None:
        """The softmax attention of which a linear makes q, k or v."""
        parts = ((b, linear) for b in self.blocks for triple in b.qkv for linear in triple)
        makes = any(blocks.holder(linear, layer) for blocks, linear in parts)
        return layer.rpartition(".")[0] if makes else None

    def joined(self, layers: Iterable[str]) -> dict[str, int]:
        """How many tensors of equal width make the input of each of `layers` that joins several."""
        named = [(blocks, *one) for blocks in self.blocks for one in blocks.joined]
        return {
            layer: parts
            for layer in layers
            for blocks, linear, parts in named
            if blocks.holder(linear, layer)
        }

    @property
    def generates(self) -> bool:
        """Whether the source of every input is known, so that images are generated and calibrated on."""
        return all(spec.source is not None for spec in self._conditions)

    @property
    def _conditions(self) -> tuple[InputSpec, ...]:
        """The inputs that no step changes."""
        changed = ("hidden_states", "timestep")
        return tuple(spec for spec in self.inputs if spec.name not in changed)

    @property
    def texts(self) -> tuple[Text, ...]:
        """All that has to be encoded, in the order of the encoders' names."""
        found = {t for spec in self.inputs if spec.source for t in spec.source.texts}
        return tuple(sorted(found, key=lambda text: text.encoder))

    @property
    def encoders(self) -> tuple[str, ...]:
        """Folders of the text encoders."""
        return tuple(dict.fromkeys(text.encoder for text in self.texts))

    @property
    def optional(self) -> tuple[str, ...]:
        """Those of `encoders` in whose place there may be nothing."""
        return tuple(text.encoder for text in self.texts if text.optional)

    def encoders_of(self, model_index: Mapping[str, Any]) -> tuple[str, ...]:
        """Folders of the text encoders of a pipeline, some of which may be left out."""
        return tuple(
            name
            for name in self.encoders
            if name not in self.optional or has_component(model_index, name)
        )

    @property
    def lets_choose_length(self) -> bool:
        """Whether one may choose how many tokens a text has."""
        return any(text.key == CHOSEN_LENGTH for text in self.texts)

    @property
    def prompts(self) -> Sequence[str]:
        """Prompts to calibrate and evaluate with where the user gives none."""
        return self.examples or general_prompts()

    @property
    def timestep(self) -> InputSpec:
        """The input that is told the timestep."""
        return next(spec for spec in self.inputs if spec.name == "timestep")

    @property
    def time_divisor(self) -> int:
        """What a scheduler's timestep is divided by before the transformer is told."""
        most = self.timestep.values
        return TIMESTEPS // most if isinstance(most, int) else 1

    def told(self, timestep: float) -> float:
        """What the transformer is told of a scheduler's timestep."""
        left = TIMESTEPS - timestep if self.reversed else timestep
        return left / self.time_divisor

    def check(self, request: Request) -> None:
        """Refuse a request before anything runs.

        Raises:
            UsageError: no image can be generated of it.
        """
        if request.negative_prompt and self.guidance.refusal:
            raise UsageError(
                f"negative prompt {request.negative_prompt!r}: {self.guidance.refusal}; leave it out"
            )
        for spec in self._conditions:
            if spec.source is not None and not spec.source.texts:
                spec.source(Wanted(request, _nothing, spec.dims, spec.dtype))

    def feed(self, request: Request, encode: Encode) -> Feed:
        """The transformer's inputs that no step changes, [rows, ...] each; each text is encoded once.

        More than a transformer declares may be among them.
        """

        @functools.cache
        def encoded(text: Text) -> Encoded:
            return request.encoded(text, encode)

        return {
            spec.name: spec.source(Wanted(request, encoded, spec.dims, spec.dtype))
            for spec in self._conditions
            if spec.source is not None
        }


def _nothing(text: Text) -> Encoded:
    raise AssertionError(text)
