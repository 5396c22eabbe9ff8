"""CogView3-Plus, a family that the tool does not know: the one file that it takes."""

from __future__ import annotations

from fp4dit_onnx.families.family import Blocks, Family
from fp4dit_onnx.families.interface import InputSpec
from fp4dit_onnx.families.request import CHOSEN_LENGTH, Text
from fp4dit_onnx.families.sources import Numbers, States

__all__ = ["COGVIEW3", "TWIN"]

_T5 = Text("text_encoder", key=CHOSEN_LENGTH, masked=False)
_SIZE = Numbers(("height", "width"))

COGVIEW3 = Family(
    name="CogView3-Plus",
    pipelines=("CogView3PlusPipeline",),
    transformer="CogView3PlusTransformer2DModel",
    inputs=(
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec(
            "encoder_hidden_states",
            "float32",
            ("batch", "text", "text_embed_dim"),
            source=States(((_T5,),)),
        ),
        InputSpec("timestep", "float32", ("batch",)),
        InputSpec("original_size", "float32", ("batch", 2), source=_SIZE),
        InputSpec("target_size", "float32", ("batch", 2), source=_SIZE),
        InputSpec("crop_coords", "float32", ("batch", 2), source=Numbers((0, 0))),
    ),
    blocks=(
        Blocks(
            "transformer_blocks",
            ("hidden_states", "encoder_hidden_states"),
            qkv=(("attn1.to_q", "attn1.to_k", "attn1.to_v"),),
        ),
    ),
    outer={
        "time embedder": ("time_condition_embed.*",),
        "patch embedding": ("patch_embed.proj",),
        "text projection": ("patch_embed.text_proj",),
        "adaLN": ("norm_out.linear",),
        "final linear": ("proj_out",),
    },
    largest_grid=lambda config: int(config["pos_embed_max_size"]),
    paper_rules=(("*", "e2m1"),),
    sampling={"steps": 50, "guidance": 7.0, "max_sequence_length": 224},
)
TWIN = {
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "text_embed_dim": 64,
    "time_embed_dim": 64,
    "condition_dim": 16,
    "sample_size": 16,
    "pos_embed_max_size": 32,
}
"""Settings of a small transformer."""
