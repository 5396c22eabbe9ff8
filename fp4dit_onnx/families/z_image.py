"""Z-Image: one stream over image and text after refiners of each, and Qwen3.

Of a text only the tokens that are no padding are read. A weight of guidance is that of the
difference on top of the prediction with the condition; Z-Image-Turbo takes none.
"""

from __future__ import annotations

from fp4dit_onnx.families.config import Config
from fp4dit_onnx.families.family import Blocks, Family
from fp4dit_onnx.families.guidance import Guidance
from fp4dit_onnx.families.interface import InputSpec
from fp4dit_onnx.families.request import CHOSEN_LENGTH, Text
from fp4dit_onnx.families.sources import Mask, States
from fp4dit_onnx.families.text_encoders import JOINED, QWEN3_CHAT

__all__ = ["Z_IMAGE"]

_QWEN3 = Text("text_encoder", key=CHOSEN_LENGTH, output=JOINED, hidden=(-2,), template=QWEN3_CHAT)
_READERS = (
    ("attention_norm1", ("attention.to_q", "attention.to_k", "attention.to_v")),
    ("ffn_norm1", ("feed_forward.w1", "feed_forward.w3")),
)
_QKV = (("attention.to_q", "attention.to_k", "attention.to_v"),)


def _grid(config: Config) -> int:
    _, *sides = config.get("axes_lens", (1024, 512, 512))
    return int(min(sides))


Z_IMAGE = Family(
    name="Z-Image",
    pipelines=("ZImagePipeline",),
    transformer="ZImageTransformer2DModel",
    inputs=(
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec(
            "encoder_hidden_states",
            "float32",
            ("batch", "text", "cap_feat_dim"),
            source=States(((_QWEN3,),)),
        ),
        InputSpec("timestep", "float32", ("batch",), values=1),
        InputSpec(
            "encoder_attention_mask", "int64", ("batch", "text"), source=Mask(_QWEN3), padded=True
        ),
    ),
    guidance=Guidance(negative_first=False, added=1.0),
    sigmas_from_one=True,
    reversed=True,
    largest_grid=_grid,
    blocks=tuple(
        Blocks(name, ("x",), readers=_READERS, qkv=_QKV)
        for name in ("noise_refiner", "context_refiner", "layers")
    ),
    outer={
        "time embedder": ("t_embedder.*",),
        "patch embedding": ("all_x_embedder.*",),
        "text projection": ("cap_embedder.*",),
        "adaLN": ("all_final_layer.*.adaLN_modulation.*",),
        "final linear": ("all_final_layer.*.linear",),
    },
    paper_rules=(("*", "e2m1"),),
    sampling={"steps": 9, "guidance": 0.0, "max_sequence_length": 512, "sample_size": 128},
)
