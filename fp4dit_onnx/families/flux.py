"""Flux: joint attention over text and image, double blocks and then single ones, packed latents.

CLIP for the whole prompt, T5 for its words; guidance is told to the transformer.
"""

from __future__ import annotations

from fp4dit_onnx.families.config import Config
from fp4dit_onnx.families.family import Blocks, Family
from fp4dit_onnx.families.guidance import Guidance
from fp4dit_onnx.families.interface import InputSpec
from fp4dit_onnx.families.latents import Latents
from fp4dit_onnx.families.request import CHOSEN_LENGTH, Text
from fp4dit_onnx.families.sources import Grid, Numbers, Pooled, States, Zeros

__all__ = ["FLUX"]

_JOINT = ("encoder_hidden_states", "hidden_states")
_CLIP = Text("text_encoder", 77, masked=False)
_T5 = Text("text_encoder_2", key=CHOSEN_LENGTH, masked=False)
_PIXELS_A_TOKEN = 16
"""Along one side: 8 of the VAE, 2 of the packing."""


def _has_guidance(config: Config) -> bool:
    return bool(config.get("guidance_embeds"))


FLUX = Family(
    name="Flux",
    pipelines=("FluxPipeline",),
    transformer="FluxTransformer2DModel",
    inputs=(
        InputSpec("hidden_states", "float32", ("batch", "image", "in_channels")),
        InputSpec(
            "encoder_hidden_states",
            "float32",
            ("batch", "text", "joint_attention_dim"),
            source=States(((_T5,),)),
        ),
        InputSpec(
            "pooled_projections",
            "float32",
            ("batch", "pooled_projection_dim"),
            source=Pooled((_CLIP,)),
        ),
        InputSpec("timestep", "float32", ("batch",), values=1),
        InputSpec("img_ids", "float32", ("image", 3), source=Grid(_PIXELS_A_TOKEN)),
        InputSpec("txt_ids", "float32", ("text", 3), source=Zeros(_T5)),
        InputSpec(
            "guidance", "float32", ("batch",), source=Numbers(("guidance",)), when=_has_guidance
        ),
    ),
    guidance=Guidance("embedded", refusal="Flux takes no negative prompt"),
    latents=Latents(packing=2),
    sigmas_from_one=True,
    blocks=(
        Blocks(
            "transformer_blocks",
            _JOINT,
            readers=(
                ("norm1", ("attn.to_q", "attn.to_k", "attn.to_v")),
                ("norm1_context", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
                ("norm2", ("ff.net.0.proj",)),
                ("norm2_context", ("ff_context.net.0.proj",)),
            ),
            qkv=(
                ("attn.to_q", "attn.to_k", "attn.to_v"),
                ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            ),
        ),
        Blocks(
            "single_transformer_blocks",
            _JOINT,
            readers=(("norm", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),),
            qkv=(("attn.to_q", "attn.to_k", "attn.to_v"),),
            joined=(
                ("proj_out", 5),
            ),  # attention's result and the feed-forward's, four times as wide
        ),
    ),
    outer={
        "time embedder": ("time_text_embed.*",),
        "patch embedding": ("x_embedder",),
        "text projection": ("context_embedder",),
        "adaLN": ("norm_out.linear",),
        "final linear": ("proj_out",),
    },
    paper_rules=(("*", "e2m1"),),
    sampling={"steps": 28, "guidance": 3.5, "max_sequence_length": 512, "sample_size": 128},
)
