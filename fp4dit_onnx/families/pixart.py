"""PixArt-alpha and PixArt-Sigma: cross-attention DiT with one shared adaLN (adaLN-single), and T5."""

from __future__ import annotations

from dataclasses import replace

from fp4dit_onnx.families.config import Config
from fp4dit_onnx.families.family import Blocks, Family
from fp4dit_onnx.families.interface import InputSpec
from fp4dit_onnx.families.request import CHOSEN_LENGTH, Text
from fp4dit_onnx.families.sources import Mask, Numbers, States

__all__ = ["PIXART_ALPHA", "PIXART_SIGMA"]

FIRST_FFN_LINEAR = "*.ff.net.0.proj"
_T5 = Text("text_encoder", key=CHOSEN_LENGTH, cleaned=True)


def has_conditions(config: Config) -> bool:
    """Whether the model takes its micro-conditions; an unset config key means at sample size 128."""
    flag = config.get("use_additional_conditions")
    return bool(config.get("sample_size", 128) == 128) if flag is None else bool(flag)


PIXART_ALPHA = Family(
    name="PixArt-alpha",
    pipelines=("PixArtAlphaPipeline",),
    transformer="PixArtTransformer2DModel",
    older=("Transformer2DModel", "ada_norm_single"),
    inputs=(
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec(
            "encoder_hidden_states",
            "float32",
            ("batch", "text", "caption_channels"),
            source=States(((_T5,),)),
        ),
        InputSpec("timestep", "float32", ("batch",)),
        InputSpec("encoder_attention_mask", "int64", ("batch", "text"), source=Mask(_T5)),
        InputSpec(
            "resolution",
            "float32",
            ("batch", 2),
            source=Numbers(("height", "width")),
            when=has_conditions,
        ),
        InputSpec(
            "aspect_ratio",
            "float32",
            ("batch", 1),
            source=Numbers(("aspect_ratio",)),
            when=has_conditions,
        ),
    ),
    grouped={"added_cond_kwargs": ("resolution", "aspect_ratio")},
    blocks=(
        Blocks(
            "transformer_blocks",
            ("hidden_states",),
            readers=(
                ("norm1", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
                ("encoder_hidden_states", ("attn2.to_k", "attn2.to_v")),
                ("norm2", ("ff.net.0.proj",)),
            ),
            qkv=(
                ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
                ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
            ),
        ),
    ),
    outer={
        "time embedder": ("adaln_single.emb.*",),
        "adaLN": ("adaln_single.linear",),
        "text projection": ("caption_projection.*",),
        "final linear": ("proj_out",),
    },
    paper_rules=((FIRST_FFN_LINEAR, "e3m0"), ("*", "e2m1")),
    sampling={"steps": 20, "guidance": 4.5, "max_sequence_length": 120},
    pipeline_options={"use_resolution_binning": False, "clean_caption": False},
)

PIXART_SIGMA = replace(
    PIXART_ALPHA,
    name="PixArt-Sigma",
    pipelines=("PixArtSigmaPipeline",),
    paper_rules=((FIRST_FFN_LINEAR, "e3m0"), ("*", "e1m2")),
    sampling={"steps": 20, "guidance": 4.5, "max_sequence_length": 300},
)
