"""AuraFlow: joint and single blocks over text and image, learned positions, and Pile-T5 (UMT5)."""

from __future__ import annotations

import math

from fp4dit_onnx.families.config import Config, count_of
from fp4dit_onnx.families.family import Blocks, Family
from fp4dit_onnx.families.interface import InputSpec
from fp4dit_onnx.families.request import CHOSEN_LENGTH, Text
from fp4dit_onnx.families.sources import States

__all__ = ["AURAFLOW"]

_T5 = Text("text_encoder", key=CHOSEN_LENGTH, blank=True)


def _grid(config: Config) -> int:
    return math.isqrt(count_of(config, "pos_embed_max_size", 1024))  # of all positions


AURAFLOW = Family(
    name="AuraFlow",
    pipelines=("AuraFlowPipeline",),
    transformer="AuraFlowTransformer2DModel",
    inputs=(
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec(
            "encoder_hidden_states",
            "float32",
            ("batch", "text", "joint_attention_dim"),
            source=States(((_T5,),)),
        ),
        InputSpec("timestep", "float32", ("batch",), values=1),
    ),
    largest_grid=_grid,
    blocks=(
        Blocks(
            "joint_transformer_blocks",
            ("encoder_hidden_states", "hidden_states"),
            alike=False,
            readers=(
                ("norm1", ("attn.to_q", "attn.to_k", "attn.to_v")),
                ("norm1_context", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
                ("norm2", ("ff.linear_1", "ff.linear_2")),
                ("norm2_context", ("ff_context.linear_1", "ff_context.linear_2")),
            ),
            qkv=(
                ("attn.to_q", "attn.to_k", "attn.to_v"),
                ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            ),
        ),
        Blocks(
            "single_transformer_blocks",
            ("hidden_states",),
            alike=False,
            readers=(
                ("norm1", ("attn.to_q", "attn.to_k", "attn.to_v")),
                ("norm2", ("ff.linear_1", "ff.linear_2")),
            ),
            qkv=(("attn.to_q", "attn.to_k", "attn.to_v"),),
        ),
    ),
    outer={
        "time embedder": ("time_step_proj.*",),
        "patch embedding": ("pos_embed.proj",),
        "text projection": ("context_embedder",),
        "adaLN": ("norm_out.linear",),
        "final linear": ("proj_out",),
    },
    paper_rules=(("*", "e2m1"),),
    sampling={"steps": 50, "guidance": 3.5, "max_sequence_length": 256},
)
