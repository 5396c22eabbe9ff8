"""Hunyuan-DiT 1.1 and 1.2: rotary embeddings, QK norm, long skips, a bilingual BERT and mT5.

Version 1.1 takes facts about the image, here the defaults of diffusers: an
original of 1024 by 1024 pixels, of which all was kept (top and left 0), and style 0.
"""

from __future__ import annotations

from fp4dit_onnx.families.config import Config, size_of
from fp4dit_onnx.families.family import Blocks, Family
from fp4dit_onnx.families.interface import GridRotary, InputSpec
from fp4dit_onnx.families.request import Text
from fp4dit_onnx.families.sources import Mask, Numbers, States

__all__ = ["HUNYUAN_DIT"]

BASE_LATENTS = 64
"""The rotary grid of every size is fitted into that of an image of 512 pixels."""
_BERT = Text("text_encoder", 77, "text_len")
_MT5 = Text("text_encoder_2", 256, "text_len_t5")
_OUTER = {
    "time embedder": ("time_extra_emb.*",),
    "text projection": ("text_embedder.*",),
    "adaLN": ("norm_out.*",),
    "final linear": ("proj_out",),
}
_KEPT = "FP4DiT keeps it in float: it is outside of the blocks"


def _has_facts(config: Config) -> bool:
    return bool(config.get("use_style_cond_and_image_meta_size", True))


def _rotary(config: Config) -> tuple[GridRotary, ...]:
    patch, head = size_of(config, "patch_size"), size_of(config, "attention_head_dim")
    return (GridRotary("image_rotary_emb", patch, head, BASE_LATENTS // patch),)


HUNYUAN_DIT = Family(
    name="Hunyuan-DiT",
    pipelines=("HunyuanDiTPipeline",),
    transformer="HunyuanDiT2DModel",
    inputs=(
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec("timestep", "float32", ("batch",)),
        InputSpec(
            "encoder_hidden_states",
            "float32",
            ("batch", "text_len", "cross_attention_dim"),
            source=States(((_BERT,),)),
        ),
        InputSpec("text_embedding_mask", "int64", ("batch", "text_len"), source=Mask(_BERT)),
        InputSpec(
            "encoder_hidden_states_t5",
            "float32",
            ("batch", "text_len_t5", "cross_attention_dim_t5"),
            source=States(((_MT5,),)),
        ),
        InputSpec("text_embedding_mask_t5", "int64", ("batch", "text_len_t5"), source=Mask(_MT5)),
        InputSpec(
            "image_meta_size",
            "float32",
            ("batch", 6),
            source=Numbers((1024, 1024, "height", "width", 0, 0)),
            when=_has_facts,
        ),
        InputSpec("style", "int64", ("batch",), values=1, source=Numbers((0,)), when=_has_facts),
    ),
    rotary=_rotary,
    blocks=(
        Blocks(
            "blocks",
            ("hidden_states",),
            readers=(
                ("norm1", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
                ("norm2", ("attn2.to_q",)),
                ("encoder_hidden_states", ("attn2.to_k", "attn2.to_v")),
                ("norm3", ("ff.net.0.proj",)),
                ("skip_norm", ("skip_linear",)),
            ),
            qkv=(
                ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
                ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
            ),
            joined=(("skip_linear", 2),),  # the block before's result and an earlier one's
        ),
    ),
    outer=_OUTER,
    # FP4DiT: E3M0 for the feed-forward's first linear, E2M1 for the others; not for what lies
    # outside of the blocks.
    paper_rules=(("blocks.*.ff.net.0.proj", "e3m0"), ("*", "e2m1")),
    sampling={"steps": 50, "guidance": 5.0, "max_sequence_length": 77},
    pipeline_options={"use_resolution_binning": False},
    skip=tuple((pattern, _KEPT) for patterns in _OUTER.values() for pattern in patterns),
)
