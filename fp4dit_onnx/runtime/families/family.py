"""The description of a family, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.runtime.sampling import Sampling

__all__ = [
    "Encode",
    "Encoded",
    "Family",
    "Feed",
    "Request",
    "Text",
    "encoded_rows",
    "has_component",
    "tokenizer_of",
]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Feed = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Text:
    """How a family has texts encoded.

    Attributes:
        encoder: folder of the text encoder, one of `Family.encoders`.
        length: tokens that every text is padded or cut to.
        masked: whether the encoder itself is told what is padding.
        output: of the encoder's graph, that the transformer reads.
    """

    encoder: str
    length: int
    masked: bool = True
    output: str = "last_hidden_state"


@dataclass(frozen=True)
class Encoded:
    """Texts as a text encoder gives them.

    Attributes:
        states: one vector a token, float32 [texts, length, D].
        mask: which tokens are no padding, int64 [texts, length].
        pooled: one vector a text, float32 [texts, P]; CLIP's only.
    """

    states: FloatArray
    mask: IntArray
    pooled: FloatArray | None = None

    def __getitem__(self, rows: Sequence[int]) -> Encoded:
        """The texts of the numbers given, in their order."""
        pooled = None if self.pooled is None else self.pooled[rows]
        return Encoded(self.states[rows], self.mask[rows], pooled)


def has_component(model_index: Mapping[str, Any], name: str) -> bool:
    """Whether model_index.json says more than null of a component, in a pair as diffusers writes it."""
    return model_index.get(name) not in (None, [None, None])


Encode = Callable[[Text, Sequence[str]], Encoded]
"""Runs a tokenizer and the text encoder that belongs to it."""


@dataclass(frozen=True)
class Request:
    """A batch to draw.

    Attributes:
        prompts: B texts.
        negative_prompt: what guidance leads away from.
        sampling: how.
        guided: whether the transformer is called with and without the condition.
        transformer_config: diffusers' config of the transformer.
        model_index: the content of model_index.json.
    """

    prompts: Sequence[str]
    negative_prompt: str
    sampling: Sampling
    guided: bool
    transformer_config: Mapping[str, Any]
    model_index: Mapping[str, Any]

    def has(self, component: str) -> bool:
        """See `has_component`."""
        return has_component(self.model_index, component)

    @property
    def rows(self) -> int:
        """Rows of the transformer's batch: B, or 2 B with guidance."""
        return len(self.prompts) * (2 if self.guided else 1)


@dataclass(frozen=True)
class Family:
    """What a pipeline does besides denoising.

    Attributes:
        pipelines: diffusers' class names.
        conditions: the transformer's inputs that no step changes, [rows, ...] each; more than the
            transformer declares may be among them.
        encoders: folders of the text encoders; the tokenizer of ``text_encoder_2`` is
            ``tokenizer_2``.
        optional: those of `encoders` in whose place there may be nothing.
        classifier_free: whether guidance compares with a second call, without the condition.
        negative_first: whether the rows without the condition precede the others.
        timestep: type of the timestep, [rows].
        time_divisor: what the timestep is divided by before the transformer is told.
        packing: side of the squares of latents that the transformer takes as one token, in
            ``hidden_states`` of [rows, tokens, channels * packing^2]; 1 if it takes them as they
            are.
        sigmas_from_one: see `FlowPlan.from_one`.
        examples: prompts that every model of the family can draw; none where it draws any text.
        check: raises UsageError for a request that cannot be drawn.
    """

    pipelines: tuple[str, ...]
    conditions: Callable[[Request, Encode], Feed]
    encoders: tuple[str, ...] = ("text_encoder",)
    optional: tuple[str, ...] = ()
    classifier_free: bool = True
    negative_first: bool = True
    timestep: type[np.generic] = np.float32
    time_divisor: int = 1
    packing: int = 1
    sigmas_from_one: bool = False
    examples: tuple[str, ...] = ()
    check: Callable[[Request], None] = lambda _: None

    def encoders_of(self, model_index: Mapping[str, Any]) -> tuple[str, ...]:
        """Folders of the text encoders of a pipeline, some of which may be left out."""
        return tuple(
            name
            for name in self.encoders
            if name not in self.optional or has_component(model_index, name)
        )


def encoded_rows(request: Request, encode: Encode, text: Text) -> Encoded:
    """A request's rows, the negative prompt's first; it is encoded once.

    Args:
        request: whose texts are encoded as they are.
        encode: runs the encoder.
        text: which, and how.
    """
    count = len(request.prompts)
    if not request.guided:
        return encode(text, request.prompts)
    encoded = encode(text, [request.negative_prompt, *request.prompts])
    return encoded[[0] * count + list(range(1, count + 1))]


def tokenizer_of(encoder: str) -> str:
    """Name of the tokenizer that belongs to an encoder, such as tokenizer_2 of text_encoder_2."""
    return encoder.replace("text_encoder", "tokenizer")
