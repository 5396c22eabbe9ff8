"""Hunyuan-DiT 1.1 and 1.2: cross-attention DiT with rotary embeddings, QK norm and long skips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fp4dit_onnx.models.family import Config, Family, InputSpec, Interface

__all__ = ["HUNYUAN_DIT"]

BASE_PIXELS, PIXELS_A_LATENT = 512, 8
"""The rotary grid of every size is fitted into that of a picture of 512 pixels."""


OUTER = ("time_extra_emb.*", "text_embedder.*", "norm_out.*", "proj_out")
KEPT = "FP4DiT keeps it in float: it is outside of the blocks"


def _interface(config: Config) -> Interface:
    inputs: tuple[InputSpec, ...] = (
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec("timestep", "float32", ("batch",)),
        InputSpec(
            "encoder_hidden_states", "float32", ("batch", "text_len", "cross_attention_dim")
        ),
        InputSpec("text_embedding_mask", "int64", ("batch", "text_len")),
        InputSpec(
            "encoder_hidden_states_t5",
            "float32",
            ("batch", "text_len_t5", "cross_attention_dim_t5"),
        ),
        InputSpec("text_embedding_mask_t5", "int64", ("batch", "text_len_t5")),
    )
    if config.get("use_style_cond_and_image_meta_size", True):
        inputs += (
            InputSpec("image_meta_size", "float32", ("batch", 6)),
            InputSpec("style", "int64", ("batch",), values=1),
        )

    def arguments(given: Mapping[str, Any]) -> dict[str, Any]:
        """With the rotary tables, which the pipeline computes outside of the transformer."""
        from fp4dit_onnx.network.positions import grid_rotary

        patch = int(config["patch_size"])
        height, width = (size // patch for size in given["hidden_states"].shape[-2:])
        base = BASE_PIXELS // PIXELS_A_LATENT // patch
        tables = grid_rotary(height, width, int(config["attention_head_dim"]), base)
        return {"return_dict": False, **given, "image_rotary_emb": tables}

    return Interface(inputs, arguments=arguments, blocks={"blocks": ("hidden_states",)})


HUNYUAN_DIT = Family(
    name="Hunyuan-DiT",
    pipelines=("HunyuanDiTPipeline",),
    transformer="HunyuanDiT2DModel",
    interface=_interface,
    # FP4DiT: E3M0 for the feed-forward's first linear, E2M1 for the others; not for what lies
    # outside of the blocks.
    paper_rules=(("blocks.*.ff.net.0.proj", "e3m0"), ("*", "e2m1")),
    sampling={"steps": 50, "guidance": 5.0, "max_sequence_length": 77},
    pipeline_options={"use_resolution_binning": False},
    skip=tuple((pattern, KEPT) for pattern in OUTER),
    attention=False,
)
