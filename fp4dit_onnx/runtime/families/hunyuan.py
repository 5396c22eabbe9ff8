"""Hunyuan-DiT: a bilingual BERT and mT5, prompts as they are, and facts about the picture.

The facts are those that diffusers tells by default: an original of 1024 by 1024 pixels, of which
all was kept, and style 0.
"""

from __future__ import annotations

import numpy as np

from fp4dit_onnx.runtime.families.family import Encode, Family, Feed, Request, Text, encoded_rows

__all__ = ["HUNYUAN_DIT"]

ORIGINAL_SIZE = (1024, 1024)
"""Height and width."""
CROP = (0, 0)
"""Top and left."""
TEXT_LENGTH, T5_TEXT_LENGTH = 77, 256
"""Where the transformer's config does not say."""


def _conditions(request: Request, encode: Encode) -> Feed:
    config, sampling = request.transformer_config, request.sampling
    length = int(config.get("text_len", TEXT_LENGTH))
    t5_length = int(config.get("text_len_t5", T5_TEXT_LENGTH))
    text = encoded_rows(request, encode, Text("text_encoder", length))
    t5_text = encoded_rows(request, encode, Text("text_encoder_2", t5_length))
    sizes = np.array([*ORIGINAL_SIZE, sampling.height, sampling.width, *CROP], np.float32)
    return {
        "encoder_hidden_states": text.states,
        "text_embedding_mask": text.mask,
        "encoder_hidden_states_t5": t5_text.states,
        "text_embedding_mask_t5": t5_text.mask,
        "image_meta_size": np.tile(sizes, (request.rows, 1)),  # [rows, 6]
        "style": np.zeros(request.rows, np.int64),
    }


HUNYUAN_DIT = Family(
    pipelines=("HunyuanDiTPipeline",),
    conditions=_conditions,
    encoders=("text_encoder", "text_encoder_2"),
)
