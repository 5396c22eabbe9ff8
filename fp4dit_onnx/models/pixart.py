"""PixArt-alpha and PixArt-Sigma: cross-attention DiT with one shared adaLN (adaLN-single)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fp4dit_onnx.models.family import Config, Family, InputSpec, Interface

__all__ = ["PIXART_ALPHA", "PIXART_SIGMA"]

_CONDITIONS = ("resolution", "aspect_ratio")
FIRST_FFN_LINEAR = "*.ff.net.0.proj"


def has_conditions(config: Config) -> bool:
    """Whether the model takes its micro-conditions; an unset config key means at sample size 128."""
    flag = config.get("use_additional_conditions")
    return bool(config.get("sample_size", 128) == 128) if flag is None else bool(flag)


def _interface(config: Config) -> Interface:
    fixed = (
        InputSpec("hidden_states", "float32", ("batch", "in_channels", "height", "width")),
        InputSpec("encoder_hidden_states", "float32", ("batch", "text", "caption_channels")),
        InputSpec("timestep", "float32", ("batch",)),
        InputSpec("encoder_attention_mask", "int64", ("batch", "text")),
    )
    conditions = (
        InputSpec("resolution", "float32", ("batch", 2)),
        InputSpec("aspect_ratio", "float32", ("batch", 1)),
    )
    return Interface(
        inputs=fixed + conditions if has_conditions(config) else fixed,
        arguments=_arguments,
        blocks={"transformer_blocks": ("hidden_states",)},
    )


def _arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {k: v for k, v in inputs.items() if k not in _CONDITIONS}
    arguments["added_cond_kwargs"] = {k: inputs.get(k) for k in _CONDITIONS}
    return {**arguments, "return_dict": False}


_OPTIONS = {"use_resolution_binning": False, "clean_caption": False}

PIXART_ALPHA = Family(
    name="PixArt-alpha",
    pipelines=("PixArtAlphaPipeline",),
    transformer="PixArtTransformer2DModel",
    interface=_interface,
    paper_rules=((FIRST_FFN_LINEAR, "e3m0"), ("*", "e2m1")),
    sampling={"steps": 20, "guidance": 4.5, "max_sequence_length": 120},
    pipeline_options=_OPTIONS,
    calibrates=True,
)

PIXART_SIGMA = Family(
    name="PixArt-Sigma",
    pipelines=("PixArtSigmaPipeline",),
    transformer="PixArtTransformer2DModel",
    interface=_interface,
    paper_rules=((FIRST_FFN_LINEAR, "e3m0"), ("*", "e1m2")),
    sampling={"steps": 20, "guidance": 4.5, "max_sequence_length": 300},
    pipeline_options=_OPTIONS,
    calibrates=True,
)
