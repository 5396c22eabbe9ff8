"""Sana: linear attention, no positions, a convolution in the feed-forward, and Gemma 2."""

from __future__ import annotations

from fp4dit_onnx.families.family import Blocks, Family
from fp4dit_onnx.families.interface import InputSpec
from fp4dit_onnx.families.request import CHOSEN_LENGTH, Text
from fp4dit_onnx.families.sources import Mask, States

__all__ = ["SANA"]

_GEMMA = Text(
    "text_encoder", key=CHOSEN_LENGTH, cleaned=True, instruction="complex_human_instruction"
)

SANA = Family(
    name="Sana",
    pipelines=("SanaPipeline",),
    transformer="SanaTransformer2DModel",
    inputs=(
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec(
            "encoder_hidden_states",
            "float32",
            ("batch", "text", "caption_channels"),
            source=States(((_GEMMA,),)),
        ),
        InputSpec("timestep", "float32", ("batch",)),
        InputSpec("encoder_attention_mask", "int64", ("batch", "text"), source=Mask(_GEMMA)),
    ),
    blocks=(
        Blocks(
            "transformer_blocks",
            ("hidden_states",),
            alike=False,  # sizes are given as numbers
            readers=(
                ("norm1", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
                ("encoder_hidden_states", ("attn2.to_k", "attn2.to_v")),
            ),
            # attn1 is linear: it multiplies keys with values first, and has no softmax
            qkv=(("attn2.to_q", "attn2.to_k", "attn2.to_v"),),
        ),
    ),
    outer={
        "time embedder": ("time_embed.emb.*",),
        "adaLN": ("time_embed.linear",),
        "text projection": ("caption_projection.*",),
        "final linear": ("proj_out",),
    },
    paper_rules=(("*", "e2m1"),),
    sampling={"steps": 20, "guidance": 4.5, "max_sequence_length": 300},
    pipeline_options={"use_resolution_binning": False},
)
