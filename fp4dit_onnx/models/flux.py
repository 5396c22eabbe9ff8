"""Flux: joint attention over text and image, double blocks and then single ones, packed latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fp4dit_onnx.models.family import Config, Family, InputSpec, Interface

__all__ = ["FLUX"]

_JOINT = ("encoder_hidden_states", "hidden_states")


def _interface(config: Config) -> Interface:
    inputs: tuple[InputSpec, ...] = (
        InputSpec("hidden_states", "float32", ("batch", "image", "in_channels")),
        InputSpec("encoder_hidden_states", "float32", ("batch", "text", "joint_attention_dim")),
        InputSpec("pooled_projections", "float32", ("batch", "pooled_projection_dim")),
        InputSpec("timestep", "float32", ("batch",), values=1),
        InputSpec("img_ids", "float32", ("image", 3)),
        InputSpec("txt_ids", "float32", ("text", 3)),
    )
    if config.get("guidance_embeds"):
        inputs += (InputSpec("guidance", "float32", ("batch",)),)
    return Interface(
        inputs,
        arguments=_arguments,
        blocks={"transformer_blocks": _JOINT, "single_transformer_blocks": _JOINT},
    )


def _arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**inputs, "return_dict": False}


FLUX = Family(
    name="Flux",
    pipelines=("FluxPipeline",),
    transformer="FluxTransformer2DModel",
    interface=_interface,
    paper_rules=(("*", "e2m1"),),
    sampling={"steps": 28, "guidance": 3.5, "max_sequence_length": 512, "sample_size": 128},
    attention=False,
)
