"""Requests for images, and the encoded texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.bundle.manifest import Sampling
from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.families.config import count_of
from fp4dit_onnx.families.guidance import Guidance
from fp4dit_onnx.files import shown

__all__ = ["Encode", "Encoded", "Feed", "Request", "Text", "has_component", "tokenizer_of"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Feed = dict[str, npt.NDArray[Any]]
CHOSEN_LENGTH = "max_sequence_length"
"""Of `Sampling`: tokens of a text, where one may choose."""


@dataclass(frozen=True)
class Text:
    """How a family has texts encoded.

    Attributes:
        encoder: folder of the text encoder; the tokenizer of ``text_encoder_2`` is ``tokenizer_2``.
        length: tokens that every text is padded or cut to, where `key` is not found.
        key: of the transformer's config, whose value goes before `length`; or `CHOSEN_LENGTH`.
        masked: whether the encoder itself is told what is padding.
        output: of the encoder's graph, that the transformer reads.
        hidden: which of the encoder's hidden states are joined to what the transformer reads, as
            transformers numbers them; none where `output` says it.
        cleaned: whether texts are lower-cased and stripped.
        template: what the tokenizer is given, with the text in the place of ``{}``.
        optional: whether there may be no such encoder, and zeros in the place of what it gives.
        blank: whether padding gets zeros in the place of what the encoder gives.
        instruction: argument of the diffusers pipeline whose default is put before prompts, not before
            the negative one; a bundle's model_index.json has it. Of what the encoder gives, the first
            token and as many of the last ones are taken as make up the length.
    """

    encoder: str
    length: int = 0
    key: str = ""
    masked: bool = True
    output: str = "last_hidden_state"
    hidden: tuple[int, ...] = ()
    cleaned: bool = False
    template: str = "{}"
    optional: bool = False
    blank: bool = False
    instruction: str = ""

    def clean(self, prompt: str) -> str:
        """A prompt as the tokenizer is given it."""
        return self.template.replace("{}", prompt.lower().strip() if self.cleaned else prompt)

    def before(self, model_index: Mapping[str, Any]) -> str:
        """What is put before prompts; raises BundleError where that is no text."""
        found = model_index.get(self.instruction, "") if self.instruction else ""
        if not isinstance(found, str):
            raise BundleError(
                f"model_index.json: {self.instruction} is {shown(found)}, expected a text; export the "
                "bundle again"
            )
        return found

    def tokens(self, request: Request) -> int:
        """Tokens that every text of a request is padded or cut to; raises as `count_of` does."""
        if self.key == CHOSEN_LENGTH:
            return request.sampling.max_sequence_length
        return count_of(request.transformer_config, self.key, self.length)


@dataclass(frozen=True)
class Encoded:
    """Texts as a text encoder gives them.

    Attributes:
        states: one vector per token, float32 [texts, length, D].
        mask: which tokens are no padding, int64 [texts, length].
        pooled: one vector per text, float32 [texts, P]; CLIP's only.
    """

    states: FloatArray
    mask: IntArray
    pooled: FloatArray | None = None

    def __getitem__(self, rows: Sequence[int]) -> Encoded:
        """The texts of the numbers given, in their order."""
        pooled = None if self.pooled is None else self.pooled[rows]
        return Encoded(self.states[rows], self.mask[rows], pooled)

    def then(self, more: Encoded) -> Encoded:
        """These texts and `more`, of encoders without pooled vectors."""
        states, mask = (self.states, more.states), (self.mask, more.mask)
        return Encoded(np.concatenate(states), np.concatenate(mask))

    def ends(self, length: int) -> Encoded:
        """The first token of each text and its last ones, `length` in all."""
        kept = [0, *range(1 - length, 0)]
        return replace(self, states=self.states[:, kept], mask=self.mask[:, kept])


Encode = Callable[[Text, int, Sequence[str]], Encoded]
"""Runs a tokenizer, to so many tokens, and the text encoder that belongs to it."""


def has_component(model_index: Mapping[str, Any], name: str) -> bool:
    """Whether model_index.json says more than null of a component, in a pair as diffusers writes it."""
    return model_index.get(name) not in (None, [None, None])


def tokenizer_of(encoder: str) -> str:
    """Name of the tokenizer that belongs to an encoder, such as tokenizer_2 of text_encoder_2."""
    return encoder.replace("text_encoder", "tokenizer")


@dataclass(frozen=True)
class Request:
    """A batch of images to generate.

    Attributes:
        prompts: B texts.
        negative_prompt: what the images should not show.
        sampling: how.
        guidance: the family's.
        transformer_config: diffusers' config of the transformer.
        model_index: the content of model_index.json.
    """

    prompts: Sequence[str]
    negative_prompt: str
    sampling: Sampling
    guidance: Guidance
    transformer_config: Mapping[str, Any]
    model_index: Mapping[str, Any]

    @property
    def guided(self) -> bool:
        """Whether the transformer is called with and without the condition."""
        return self.guidance.doubles(self.sampling.guidance)

    @property
    def rows(self) -> int:
        """Rows of the transformer's batch: B, or 2 B with guidance."""
        return len(self.prompts) * (2 if self.guided else 1)

    def in_order(self, given: Sequence[Any], without: Any) -> list[Any]:
        """What each row has: `given` with the condition, B of them, `without` in its absence."""
        if not self.guided:
            return list(given)
        absent = [without] * len(given)
        return [*absent, *given] if self.guidance.negative_first else [*given, *absent]

    def encoded(self, text: Text, encode: Encode) -> Encoded:
        """The rows' texts; the negative prompt is encoded once, and before the others."""
        length = text.tokens(self)
        prompts, negative = [text.clean(p) for p in self.prompts], text.clean(self.negative_prompt)
        if not self.guided:
            return encode(text, length, prompts)
        if text.instruction:
            bare = encode(replace(text, instruction=""), length, [negative])
            found = bare.then(encode(text, length, prompts))
        else:
            found = encode(text, length, [negative, *prompts])
        return found[self.in_order(range(1, len(prompts) + 1), 0)]
