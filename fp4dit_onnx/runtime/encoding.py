"""Texts through a text encoder of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.families.request import Encoded, Text
from fp4dit_onnx.runtime.denoising import declared
from fp4dit_onnx.runtime.session import Session
from fp4dit_onnx.runtime.tokenizer import Tokenizer

__all__ = ["encoded"]

_POOLED = ("text_embeds", "pooler_output")
"""Outputs of text encoders with one vector per text."""


def encoded(
    encoder: Session,
    tokenizer: Tokenizer,
    text: Text,
    length: int,
    texts: Sequence[str],
    model_index: Mapping[str, Any],
) -> Encoded:
    """What an encoder gives for `texts`, padded or cut to `length` tokens.

    Args:
        encoder: gives one of its outputs by the name that `text` has.
        tokenizer: of the encoder.
        text: how the family reads it.
        length: in tokens.
        texts: any.
        model_index: of the bundle.

    Raises:
        BundleError: the encoder has no such output.
    """
    names = [item.name for item in encoder.get_outputs()]
    if text.output not in names:
        raise BundleError(
            f"{text.encoder} gives {', '.join(names)}: expected {text.output} among them; "
            "export the bundle again"
        )
    before = text.before(model_index)
    # Less 2 as diffusers has it: for the first token, and one that joins the prompt's first.
    more = tokenizer.length(before) - 2 if before else 0
    ids, mask = tokenizer([before + one for one in texts], length + more)
    feed = {"input_ids": ids, "attention_mask": mask if text.masked else np.ones_like(mask)}
    results = encoder.run(None, declared(encoder, feed, text.encoder))
    found = dict(zip(names, results, strict=True))
    pooled = [found[name] for name in _POOLED if name in found]
    result = Encoded(found[text.output], mask, pooled[0] if pooled else None)
    return result.ends(length) if before else result
