"""FLUX.2-klein: Flux's kinds of blocks, each with one modulation for all, and states within Qwen3.

The distilled models, which take no guidance; the others generate without it.
"""

from __future__ import annotations

from fp4dit_onnx.families.family import Blocks, Family
from fp4dit_onnx.families.guidance import Guidance
from fp4dit_onnx.families.interface import InputSpec
from fp4dit_onnx.families.latents import Latents
from fp4dit_onnx.families.request import CHOSEN_LENGTH, Text
from fp4dit_onnx.families.sources import Grid, Order, States
from fp4dit_onnx.families.text_encoders import JOINED, QWEN3_CHAT

__all__ = ["FLUX2_KLEIN"]

_QWEN3 = Text(
    "text_encoder",
    key=CHOSEN_LENGTH,
    output=JOINED,
    hidden=(9, 18, 27),
    template=f"{QWEN3_CHAT}<think>\n\n</think>\n\n",
)
_PIXELS_A_TOKEN = 16
"""Along one side: 8 of the VAE, 2 of the packing."""

FLUX2_KLEIN = Family(
    name="FLUX.2-klein",
    pipelines=("Flux2KleinPipeline",),
    transformer="Flux2Transformer2DModel",
    inputs=(
        InputSpec("hidden_states", "float32", ("batch", "image", "in_channels")),
        InputSpec(
            "encoder_hidden_states",
            "float32",
            ("batch", "text", "joint_attention_dim"),
            source=States(((_QWEN3,),)),
        ),
        InputSpec("timestep", "float32", ("batch",), values=1),
        InputSpec("img_ids", "float32", ("image", 4), source=Grid(_PIXELS_A_TOKEN)),
        InputSpec("txt_ids", "float32", ("text", 4), source=Order(_QWEN3)),
    ),
    guidance=Guidance("none", refusal="FLUX.2-klein takes no negative prompt"),
    latents=Latents(packing=2, scaling=1.0, squares=True),
    sigmas_from_one=True,
    empirical_shift=True,
    blocks=(
        Blocks(
            "transformer_blocks",
            ("encoder_hidden_states", "hidden_states"),
            readers=(
                ("norm1", ("attn.to_q", "attn.to_k", "attn.to_v")),
                ("norm1_context", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
                ("norm2", ("ff.linear_in",)),
                ("norm2_context", ("ff_context.linear_in",)),
            ),
            qkv=(
                ("attn.to_q", "attn.to_k", "attn.to_v"),
                ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            ),
        ),
        Blocks(
            "single_transformer_blocks",
            ("hidden_states",),
            readers=(("norm", ("attn.to_qkv_mlp_proj",)),),
            qkv=(("attn.to_qkv_mlp_proj",) * 3,),
            joined=(
                ("attn.to_out", 4),
            ),  # attention's result and the feed-forward's, three times as wide
        ),
    ),
    outer={
        "time embedder": ("time_guidance_embed.*",),
        "patch embedding": ("x_embedder",),
        "text projection": ("context_embedder",),
        "adaLN": ("*_modulation*.linear", "norm_out.linear"),
        "final linear": ("proj_out",),
    },
    paper_rules=(("*", "e2m1"),),
    sampling={"steps": 4, "guidance": 1.0, "max_sequence_length": 512, "sample_size": 128},
)
