"""PixArt-alpha and PixArt-Sigma: one T5 encoder, lower-cased prompts, the picture's size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fp4dit_onnx.runtime.families.family import Encode, Family, Feed, Request, Text, encoded_rows

__all__ = ["PIXART"]


def _cleaned(text: str) -> str:
    return text.lower().strip()


def _conditions(request: Request, encode: Encode) -> Feed:
    request = replace(
        request,
        prompts=[_cleaned(prompt) for prompt in request.prompts],
        negative_prompt=_cleaned(request.negative_prompt),
    )
    sampling, rows = request.sampling, request.rows
    text = encoded_rows(request, encode, Text("text_encoder", sampling.max_sequence_length))
    size = np.array([sampling.height, sampling.width], np.float32)
    return {
        "encoder_hidden_states": text.states,
        "encoder_attention_mask": text.mask,
        "resolution": np.tile(size, (rows, 1)),
        "aspect_ratio": np.full((rows, 1), sampling.height / sampling.width, np.float32),
    }


PIXART = Family(pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"), conditions=_conditions)
