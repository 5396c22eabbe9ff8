"""DiT: class-conditional, adaLN-zero in every block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fp4dit_onnx.models.family import Config, Family, InputSpec, Interface

__all__ = ["DIT"]


def _interface(config: Config) -> Interface:
    inputs = (
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec("timestep", "int64", ("batch",)),
        InputSpec("class_labels", "int64", ("batch",), values="num_embeds_ada_norm"),
    )
    return Interface(
        inputs, arguments=_arguments, blocks={"transformer_blocks": ("hidden_states",)}
    )


def _arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**inputs, "return_dict": False}


DIT = Family(
    name="DiT",
    pipelines=("DiTPipeline",),
    transformer="DiTTransformer2DModel",
    interface=_interface,
    paper_rules=(("*.ff.net.0.proj", "e3m0"), ("*", "e2m1")),
    sampling={"steps": 50, "guidance": 4.0, "max_sequence_length": 0},
    skip=(("*.class_embedder.embedding_table", "an embedding table, not a linear"),),
)
