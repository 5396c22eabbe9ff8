"""Sana: linear attention, no positions, a convolution in the feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fp4dit_onnx.models.family import Config, Family, InputSpec, Interface

__all__ = ["SANA"]


def _interface(config: Config) -> Interface:
    inputs = (
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec("encoder_hidden_states", "float32", ("batch", "text", "caption_channels")),
        InputSpec("timestep", "float32", ("batch",)),
        InputSpec("encoder_attention_mask", "int64", ("batch", "text")),
    )
    return Interface(inputs, arguments=_arguments)


def _arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**inputs, "return_dict": False}


SANA = Family(
    name="Sana",
    pipelines=("SanaPipeline",),
    transformer="SanaTransformer2DModel",
    interface=_interface,
    paper_rules=(("*", "e2m1"),),
    sampling={"steps": 20, "guidance": 4.5, "max_sequence_length": 300},
    attention=False,
)
