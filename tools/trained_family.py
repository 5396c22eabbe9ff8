"""What a family is in tools/train_demo.py, and how captions reach a transformer that learns."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import diffusers as untyped_diffusers
import torch
from emoji_images import Emoji, learned
from training import Budget, Objective

__all__ = ["Family", "Given", "Learned", "Texts", "captions", "left_out", "tokens_of"]

diffusers: Any = untyped_diffusers

UNCONDITIONAL = 0.1
"""Share of the batch without a condition, for guidance."""


@dataclass(frozen=True)
class Given:
    """What a transformer is trained with.

    Attributes:
        everything: all images.
        vae_budget: of an autoencoder, where one is trained.
        parts: folder of a pipeline whose parts are kept; None to train them.
    """

    everything: list[Emoji]
    vae_budget: Budget
    parts: Path | None

    @property
    def items(self) -> list[Emoji]:
        """What the transformer learns."""
        return learned(self.everything)

    def pipeline(self) -> Any:
        """The pipeline of the parts, float32."""
        loaded = diffusers.PixArtAlphaPipeline.from_pretrained(self.parts)
        return loaded.to(torch.float32)


@dataclass(frozen=True)
class Learned:
    """A pipeline to be, whose transformer is trained.

    Attributes:
        vae: trained.
        parts: the other arguments of the pipeline's class, but transformer and scheduler.
        conditions: arguments of the transformer for items of these numbers; some get no condition.
        further: modules that are trained with it.
        kept: folders that are those of the given parts, and the names that these have there.
        index: further entries of model_index.json.
        settings: entries of JSON files that are not as in the parts.
    """

    vae: Any
    parts: Mapping[str, Any]
    conditions: Callable[[Sequence[int]], dict[str, Any]]
    further: Sequence[Any] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        pipeline: diffusers' class.
        transformer: a function that makes an untrained one.
        learn: gets ready what is trained with it.
        objective: what it predicts.
        scheduler: that samples.
        sampling: steps, guidance and max_sequence_length that suit it.
        small: patterns of linears whose first weights are small: embedders and adaLN.
        zero: of those whose first weights are zero: outputs.
        further: what else first weights need.
    """

    pipeline: str
    transformer: Callable[[], Any]
    learn: Callable[[Given], Learned]
    objective: Callable[[], Objective]
    scheduler: Callable[[], Any]
    sampling: Mapping[str, float]
    small: Sequence[str] = ()
    zero: Sequence[str] = ()
    further: Callable[[Any], None] = field(default=lambda _: None)

    def initialise(self, transformer: Any) -> None:
        """Bell-shaped first weights (see the text of train_demo.py)."""
        for name, module in transformer.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                weight = module.weight.view(module.weight.shape[0], -1)
                if any(fnmatch(name, pattern) for pattern in self.zero):
                    torch.nn.init.zeros_(weight)
                elif any(fnmatch(name, pattern) for pattern in self.small):
                    torch.nn.init.normal_(weight, std=0.02)
                else:
                    torch.nn.init.xavier_normal_(weight)
                if module.bias is not None:
                    torch.nn.init.zeros_(module.bias)
        self.further(transformer)


def captions(item: Emoji) -> list[str]:
    """What an item may be called."""
    return [
        item.name,
        item.short,
        f"an emoji of {item.name}",
        f"{item.short}, {item.kind}",
        f"an emoji of {item.short}",
    ]


def left_out() -> bool:
    """Whether a sample is to be learned without its condition."""
    return random.random() < UNCONDITIONAL


class Texts:
    """The learned items' captions, as frozen encoders have them: encoded once.

    Args:
        items: their captions are row by row; the last row is the empty text.
        encode: arguments of the transformer for texts.
    """

    def __init__(
        self, items: Sequence[Emoji], encode: Callable[[list[str]], dict[str, torch.Tensor]]
    ) -> None:
        texts = [caption for item in items for caption in captions(item)]
        self._each, self._none = len(texts) // len(items), len(texts)
        with torch.no_grad():
            parts = [encode(texts[i : i + 64]) for i in range(0, len(texts), 64)] + [encode([""])]
        self._rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def __call__(self, pick: Sequence[int]) -> dict[str, Any]:
        """See `Learned.conditions`."""
        rows = [
            self._none if left_out() else i * self._each + random.randrange(self._each)
            for i in pick
        ]
        return {name: table[rows] for name, table in self._rows.items()}


def tokens_of(tokenizer: Any, texts: list[str], length: int) -> Any:
    """Texts padded or cut to `length` tokens, as pipelines have them."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
