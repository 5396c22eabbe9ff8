"""Prompts to token ids with the `tokenizers` package alone, as transformers does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import tokenizers

from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.files import BUNDLE, LARGE, checked, read_json, read_text

__all__ = ["Tokenizer"]

IntArray = npt.NDArray[np.int64]

_USUAL_PADDING = ("<pad>", "[PAD]")


@dataclass(frozen=True)
class _Token:
    """A token with what surrounds it."""

    content: str


@dataclass(frozen=True)
class _Settings:
    """What tokenizer_config.json says of padding and cutting."""

    pad_token: str | _Token | None = None
    padding_side: Literal["left", "right"] = "right"
    truncation_side: Literal["left", "right"] = "right"


def _settings(path: Path) -> _Settings:
    if not path.is_file():
        return _Settings()
    content = read_json(path, "the tokenizer's settings", BUNDLE)
    return checked(_Settings, content, str(path), BUNDLE)


class Tokenizer:
    """The tokenizer of a bundle.

    Args:
        folder: holds ``tokenizer.json`` and, if the padding token is an unusual one or padding and
            cutting are not on the right, ``tokenizer_config.json``.

    Raises:
        BundleError: there is no readable ``tokenizer.json``, or no padding token is known.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        text = read_text(path, "a tokenizer", BUNDLE, LARGE)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as cause:  # the package raises Exception itself
            raise BundleError(
                f"{path} is not a tokenizer: {cause}; export the bundle again"
            ) from cause
        self._settings = _settings(folder / "tokenizer_config.json")
        self._padding = self._padding_token(self._settings.pad_token, path)

    def _padding_token(self, token: str | _Token | None, path: Path) -> str:
        if isinstance(token, _Token):
            token = token.content
        stored = (self._tokenizer.padding or {}).get("pad_token")
        for candidate in (token, stored, *_USUAL_PADDING):
            if candidate is not None and self._tokenizer.token_to_id(candidate) is not None:
                return str(candidate)
        raise BundleError(
            f"{path} defines no padding token: expected pad_token in tokenizer_config.json, "
            f"or one of {', '.join(_USUAL_PADDING)} in the vocabulary"
        )

    def length(self, text: str) -> int:
        """Tokens of a text, special ones included, that is neither cut nor padded."""
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        return len(self._tokenizer.encode(text).ids)

    def __call__(self, prompts: Sequence[str], max_length: int) -> tuple[IntArray, IntArray]:
        """Token ids and attention mask, both int64 [B, max_length].

        A long prompt is cut so that its special tokens stay; a short one is padded, with mask 0.
        """
        self._tokenizer.enable_truncation(max_length, direction=self._settings.truncation_side)
        self._tokenizer.enable_padding(
            direction=self._settings.padding_side,
            pad_id=self._tokenizer.token_to_id(self._padding),
            pad_token=self._padding,
            length=max_length,
        )
        encodings = self._tokenizer.encode_batch(list(prompts))
        ids = np.array([e.ids for e in encodings], np.int64).reshape(-1, max_length)
        mask = np.array([e.attention_mask for e in encodings], np.int64)
        return ids, mask.reshape(-1, max_length)  # [0, max_length] without prompts
