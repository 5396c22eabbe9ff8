"""DiT: class-conditional, adaLN-zero with an embedder of its own in every block."""

from __future__ import annotations

from fp4dit_onnx.families.family import Blocks, Family
from fp4dit_onnx.families.guidance import Guidance
from fp4dit_onnx.families.interface import InputSpec
from fp4dit_onnx.families.sources import ClassLabels

__all__ = ["DIT"]

_CLASSES = "num_embeds_ada_norm"

DIT = Family(
    name="DiT",
    pipelines=("DiTPipeline",),
    transformer="DiTTransformer2DModel",
    older=("Transformer2DModel", "ada_norm_zero"),
    inputs=(
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec("timestep", "int64", ("batch",)),
        InputSpec(
            "class_labels",
            "int64",
            ("batch",),
            values=_CLASSES,
            source=ClassLabels(_CLASSES, 1000),
        ),
    ),
    guidance=Guidance(
        negative_first=False,
        refusal="this model generates images of classes and takes no negative prompt",
    ),
    examples=("0", "1", "2", "3"),
    blocks=(
        Blocks(
            "transformer_blocks",
            ("hidden_states",),
            readers=(
                ("norm1", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
                ("norm3", ("ff.net.0.proj",)),
            ),
            qkv=(("attn1.to_q", "attn1.to_k", "attn1.to_v"),),
        ),
    ),
    outer={
        "time embedder": ("transformer_blocks.*.norm1.emb.timestep_embedder.*",),
        "adaLN": ("proj_out_1",),
        "final linear": ("proj_out_2",),
    },
    paper_rules=(("*.ff.net.0.proj", "e3m0"), ("*", "e2m1")),
    sampling={"steps": 50, "guidance": 4.0, "max_sequence_length": 0},
    skip=(("*.class_embedder.embedding_table", "an embedding table, not a linear"),),
)
