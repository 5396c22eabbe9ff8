"""Flux: CLIP for the whole prompt, T5 for its words; guidance is told to the transformer."""

from __future__ import annotations

import numpy as np

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.families.family import Encode, Family, Feed, Request, Text, encoded_rows

__all__ = ["FLUX"]

CLIP_LENGTH = 77
PIXELS_A_TOKEN = 16
"""Along one side: 8 of the VAE, 2 of the packing."""


def _check(request: Request) -> None:
    if request.negative_prompt:
        raise UsageError(
            f"negative prompt {request.negative_prompt!r}: the guidance of Flux leads away from "
            "none; leave it out"
        )


def _conditions(request: Request, encode: Encode) -> Feed:
    sampling, rows = request.sampling, request.rows
    clip = encoded_rows(request, encode, Text("text_encoder", CLIP_LENGTH, masked=False))
    length = sampling.max_sequence_length
    t5 = encoded_rows(request, encode, Text("text_encoder_2", length, masked=False))
    grid = np.indices((sampling.height // PIXELS_A_TOKEN, sampling.width // PIXELS_A_TOKEN))
    places = np.pad(grid.reshape(2, -1).T, ((0, 0), (1, 0)))  # [tokens, 3]: 0, row, column
    feed: Feed = {
        "encoder_hidden_states": t5.states,
        "img_ids": places.astype(np.float32),
        "txt_ids": np.zeros((length, 3), np.float32),
        "guidance": np.full(rows, sampling.guidance, np.float32),
    }
    if clip.pooled is not None:
        feed["pooled_projections"] = clip.pooled
    return feed


FLUX = Family(
    pipelines=("FluxPipeline",),
    conditions=_conditions,
    encoders=("text_encoder", "text_encoder_2"),
    classifier_free=False,
    time_divisor=1000,
    packing=2,
    sigmas_from_one=True,
    check=_check,
)
