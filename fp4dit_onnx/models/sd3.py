"""Stable Diffusion 3 and 3.5: joint attention over text and image (MMDiT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fp4dit_onnx.models.family import Config, Family, InputSpec, Interface

__all__ = ["SD3"]


def _interface(config: Config) -> Interface:
    inputs = (
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec("encoder_hidden_states", "float32", ("batch", "text", "joint_attention_dim")),
        InputSpec("pooled_projections", "float32", ("batch", "pooled_projection_dim")),
        InputSpec("timestep", "float32", ("batch",)),
    )
    return Interface(inputs, arguments=_arguments)


def _arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**inputs, "return_dict": False}


SD3 = Family(
    name="Stable Diffusion 3",
    pipelines=("StableDiffusion3Pipeline",),
    transformer="SD3Transformer2DModel",
    interface=_interface,
    paper_rules=(("*", "e2m1"),),
    sampling={"steps": 28, "guidance": 7.0, "max_sequence_length": 256},
    attention=False,
)
