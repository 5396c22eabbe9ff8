"""Stable Diffusion 3 and 3.5: joint attention over text and image (MMDiT).

Two CLIP encoders and T5, none of which is told what is padding. T5 may be left out.
"""

from __future__ import annotations

from fp4dit_onnx.families.config import Config, count_of
from fp4dit_onnx.families.family import Blocks, Family
from fp4dit_onnx.families.interface import InputSpec
from fp4dit_onnx.families.request import CHOSEN_LENGTH, Text
from fp4dit_onnx.families.sources import Pooled, States

__all__ = ["SD3"]

# Of CLIP what the last layer but one gives, not normalized.
_CLIP_L, _CLIP_G = (
    Text(name, 77, masked=False, output="penultimate_hidden_state")
    for name in ("text_encoder", "text_encoder_2")
)
_T5 = Text("text_encoder_3", key=CHOSEN_LENGTH, masked=False, optional=True)


def _grid(config: Config) -> int | None:
    absent = config.get("pos_embed_max_size", 96) is None
    return None if absent else count_of(config, "pos_embed_max_size", 96)


SD3 = Family(
    name="Stable Diffusion 3",
    pipelines=("StableDiffusion3Pipeline",),
    transformer="SD3Transformer2DModel",
    inputs=(
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec(
            "encoder_hidden_states",
            "float32",
            ("batch", "text", "joint_attention_dim"),
            source=States(((_CLIP_L, _CLIP_G), (_T5,))),
        ),
        InputSpec(
            "pooled_projections",
            "float32",
            ("batch", "pooled_projection_dim"),
            source=Pooled((_CLIP_L, _CLIP_G)),
        ),
        InputSpec("timestep", "float32", ("batch",)),
    ),
    largest_grid=_grid,
    blocks=(
        Blocks(
            "transformer_blocks",
            ("encoder_hidden_states", "hidden_states"),
            alike=False,  # the last one gives no text
            readers=(
                ("norm1", ("attn.to_q", "attn.to_k", "attn.to_v")),
                ("norm1", ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
                ("norm1_context", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
                ("norm2", ("ff.net.0.proj",)),
                ("norm2_context", ("ff_context.net.0.proj",)),
            ),
            qkv=(
                ("attn.to_q", "attn.to_k", "attn.to_v"),
                ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
            ),
        ),
    ),
    outer={
        "time embedder": ("time_text_embed.*",),
        "text projection": ("context_embedder",),
        "adaLN": ("norm_out.linear",),
        "final linear": ("proj_out",),
    },
    paper_rules=(("*", "e2m1"),),
    sampling={"steps": 28, "guidance": 7.0, "max_sequence_length": 256},
)
