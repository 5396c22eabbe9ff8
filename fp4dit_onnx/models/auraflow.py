"""AuraFlow: joint and single blocks over text and image, learned positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fp4dit_onnx.models.family import Config, Family, InputSpec, Interface

__all__ = ["AURAFLOW"]


def _interface(config: Config) -> Interface:
    inputs = (
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec("encoder_hidden_states", "float32", ("batch", "text", "joint_attention_dim")),
        InputSpec("timestep", "float32", ("batch",), values=1),
    )
    return Interface(inputs, arguments=_arguments)


def _arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**inputs, "return_dict": False}


AURAFLOW = Family(
    name="AuraFlow",
    pipelines=("AuraFlowPipeline",),
    transformer="AuraFlowTransformer2DModel",
    interface=_interface,
    paper_rules=(("*", "e2m1"),),
    sampling={"steps": 50, "guidance": 3.5, "max_sequence_length": 256},
    attention=False,
)
