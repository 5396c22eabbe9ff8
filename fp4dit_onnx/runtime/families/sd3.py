"""Stable Diffusion 3: two CLIP encoders and T5, none of which is told what is padding.

T5 may be left out: zeros are in the place of what it gives.
"""

from __future__ import annotations

import numpy as np

from fp4dit_onnx.runtime.families.family import Encode, Family, Feed, Request, Text, encoded_rows

__all__ = ["SD3"]

T5 = "text_encoder_3"
CLIP_LENGTH = 77
CLIP_OUTPUT = "penultimate_hidden_state"
"""What the last layer but one gives, not normalized."""


def _conditions(request: Request, encode: Encode) -> Feed:
    clips = [
        encoded_rows(request, encode, Text(name, CLIP_LENGTH, masked=False, output=CLIP_OUTPUT))
        for name in ("text_encoder", "text_encoder_2")
    ]
    length = request.sampling.max_sequence_length
    if request.has(T5):
        t5 = encoded_rows(request, encode, Text(T5, length, masked=False)).states
    else:
        width = int(request.transformer_config["joint_attention_dim"])
        t5 = np.zeros((request.rows, length, width), np.float32)
    clip = np.concatenate([text.states for text in clips], axis=2)  # [rows, 77, D1 + D2]
    missing = t5.shape[2] - clip.shape[2]
    padded = np.pad(clip, ((0, 0), (0, 0), (0, missing)))  # [rows, 77, D3]
    pooled = [text.pooled for text in clips if text.pooled is not None]
    return {
        "encoder_hidden_states": np.concatenate([padded, t5], axis=1),  # [rows, 77 + L, D3]
        "pooled_projections": np.concatenate(pooled, axis=1),
    }


SD3 = Family(
    pipelines=("StableDiffusion3Pipeline",),
    conditions=_conditions,
    encoders=("text_encoder", "text_encoder_2", T5),
    optional=(T5,),
)
