"""Prompts to token ids with the `tokenizers` package alone, as transformers does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.files import BUNDLE, read_json
from fp4dit_onnx.texts import utf8_text

__all__ = ["Tokenizer"]

IntArray = npt.NDArray[np.int64]

_USUAL_PADDING = ("<pad>", "[PAD]")


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
        if not path.is_file():
            raise BundleError(
                f"{path} does not exist: expected a tokenizer; export the bundle again"
            )
        name = utf8_text("path", str(path))
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(name)
        except Exception as cause:  # the package raises Exception itself
            raise BundleError(
                f"{path} is no tokenizer: {cause}; export the bundle again"
            ) from cause
        settings_path = folder / "tokenizer_config.json"
        settings: dict[str, Any] = {}
        if settings_path.is_file():
            settings = read_json(settings_path, "the tokenizer's settings", BUNDLE)
        self._padding_side = settings.get("padding_side", "right")
        self._truncation_side = settings.get("truncation_side", "right")
        self._padding = self._padding_token(settings, path)

    def _padding_token(self, settings: dict[str, Any], path: Path) -> str:
        token = settings.get("pad_token")
        if isinstance(token, dict):
            token = token.get("content")
        stored = (self._tokenizer.padding or {}).get("pad_token")
        for candidate in (token, stored, *_USUAL_PADDING):
            if candidate is not None and self._tokenizer.token_to_id(candidate) is not None:
                return str(candidate)
        raise BundleError(
            f"{path} knows no padding token: expected pad_token in tokenizer_config.json, "
            f"or one of {', '.join(_USUAL_PADDING)} in the vocabulary"
        )

    def __call__(self, prompts: Sequence[str], max_length: int) -> tuple[IntArray, IntArray]:
        """Token ids and attention mask, both int64 [B, max_length].

        A long prompt is cut so that its special tokens stay; a short one is padded, with mask 0.
        """
        self._tokenizer.enable_truncation(max_length, direction=self._truncation_side)
        self._tokenizer.enable_padding(
            direction=self._padding_side,
            pad_id=self._tokenizer.token_to_id(self._padding),
            pad_token=self._padding,
            length=max_length,
        )
        encodings = self._tokenizer.encode_batch(list(prompts))
        ids = np.array([e.ids for e in encodings], np.int64).reshape(-1, max_length)
        mask = np.array([e.attention_mask for e in encodings], np.int64)
        return ids, mask.reshape(-1, max_length)  # [0, max_length] without prompts
