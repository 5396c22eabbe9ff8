"""The components of official diffusers pipelines other than their transformers: their configurations.

Facts only: the values of the published configuration files, as diffusers' conversion scripts
(huggingface/diffusers, scripts/convert_*_to_diffusers.py) and model defaults state them; the comment
above a table names its source where it is another one. A value left out is the class's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]
SMALL: Config = {"num_attention_heads": 4, "attention_head_dim": 24}
"""Heads of many twins."""
ABSENT = [None, None]
"""What model_index.json has for a part that was left out."""
TEXT_VOCABULARY = 3000
"""Tokens of a twin's text encoder: at least those of the tokenizers that are written."""


@dataclass(frozen=True)
class Part:
    """One component of a pipeline.

    Attributes:
        library: that has the class: diffusers or transformers.
        class_name: of the component.
        config: its official configuration; of a tokenizer, what `small_tokenizers.write` takes.
        twin: values that a twin has in place of, or besides, those of `config`.
        shards: weight files of the official repository.
        legacy: class name and further values of the published file, where that is older than the
            class; None where they are the same.
    """

    library: str
    class_name: str
    config: Config
    twin: Config = field(default_factory=dict)
    legacy: tuple[str, Config] | None = None
    shards: int = 1


@dataclass(frozen=True)
class Pipeline:
    """A pipeline.

    Attributes:
        class_name: diffusers' class.
        parts: components by folder name.
        index: further entries of model_index.json.
    """

    class_name: str
    parts: Mapping[str, Part]
    index: Config = field(default_factory=dict)


def of_diffusers(
    class_name: str, config: Config, twin: Config | None = None, shards: int = 1
) -> Part:
    """A part of a class of diffusers."""
    return Part("diffusers", class_name, config, twin or {}, shards=shards)


def of_transformers(
    class_name: str, config: Config, twin: Config | None = None, shards: int = 1
) -> Part:
    """A part of a class of transformers."""
    return Part("transformers", class_name, config, twin or {}, shards=shards)


_KL: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
}
_KL_TWIN: Config = {
    "block_out_channels": [16, 16, 32, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 64,
}
_NO_QUANT_CONV = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}


def _kl(**values: Any) -> Part:
    return of_diffusers("AutoencoderKL", {**_KL, **values}, _KL_TWIN)


VAE_SD = _kl(sample_size=256, scaling_factor=0.18215)
VAE_SDXL = _kl(sample_size=1024, scaling_factor=0.13025)
VAE_SD3 = _kl(sample_size=1024, scaling_factor=1.5305, shift_factor=0.0609, **_NO_QUANT_CONV)
VAE_FLUX2 = of_diffusers(
    "AutoencoderKLFlux2",
    {
        **_KL,
        "latent_channels": 32,
        "sample_size": 1024,
        "batch_norm_eps": 1e-4,
        "patch_size": [2, 2],
    },
    _KL_TWIN,
)
VAE_FLUX = _kl(sample_size=1024, scaling_factor=0.3611, shift_factor=0.1159, **_NO_QUANT_CONV)
_DC_BLOCKS = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
_DC_SCALES: list[list[int]] = [[], [], [], [5], [5], [5]]
_DC_WIDTHS = [16, 16, 32, 32, 32, 32]
# scripts/convert_dcae_to_diffusers.py, dc-ae-f32c32-sana-1.0
VAE_DC = of_diffusers(
    "AutoencoderDC",
    {
        "latent_channels": 32,
        "encoder_block_types": _DC_BLOCKS,
        "decoder_block_types": _DC_BLOCKS,
        "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
        "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
        "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
        "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
        "encoder_qkv_multiscales": _DC_SCALES,
        "decoder_qkv_multiscales": _DC_SCALES,
        "upsample_block_type": "interpolate",
        "downsample_block_type": "conv",
        "scaling_factor": 0.41407,
    },
    {
        "attention_head_dim": 16,
        "encoder_block_out_channels": _DC_WIDTHS,
        "decoder_block_out_channels": _DC_WIDTHS,
        "encoder_layers_per_block": [1] * 6,
        "decoder_layers_per_block": [1] * 6,
    },
)

# Text encoders and their tokenizers

_T5_TWIN: Config = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 160,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": TEXT_VOCABULARY,
}


def _t5(d_model: int, d_ff: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "d_model": d_model,
        "d_kv": 64,
        "d_ff": d_ff,
        "num_layers": 24,
        "num_heads": heads,
        "vocab_size": vocabulary,
        "feed_forward_proj": "gated-gelu",
    }


# google/t5-v1_1-xxl, google/mt5-xl, EleutherAI/pile-t5-xl
T5_XXL = of_transformers("T5EncoderModel", _t5(4096, 10240, 64, 32128), _T5_TWIN, shards=2)
MT5_XL = of_transformers("T5EncoderModel", _t5(2048, 5120, 32, 250112), _T5_TWIN, shards=2)
PILE_T5_XL = of_transformers("UMT5EncoderModel", _t5(2048, 5120, 32, 32128), _T5_TWIN)
# The text encoder of Tencent-Hunyuan/HunyuanDiT-Diffusers
BERT = of_transformers(
    "BertModel",
    {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "vocab_size": 47020,
        "max_position_embeddings": 512,
    },
    {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": TEXT_VOCABULARY,
    },
)
GEMMA2 = of_transformers(
    "Gemma2Model",
    {
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "vocab_size": 256000,
    },
    {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 160,
        "vocab_size": TEXT_VOCABULARY,
    },
)


def _qwen3(class_name: str) -> Part:
    """Qwen/Qwen3-4B; the twin has fewer layers than FLUX.2-klein reads states of, but one."""
    return of_transformers(
        class_name,
        {
            "hidden_size": 2560,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 9728,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        {
            "hidden_size": 32,
            "num_hidden_layers": 29 if class_name == "Qwen3ForCausalLM" else 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 48,
            "vocab_size": TEXT_VOCABULARY,
        },
        shards=3,
    )


QWEN3, QWEN3_LM = _qwen3("Qwen3Model"), _qwen3("Qwen3ForCausalLM")


def _clip(class_name: str, width: int, layers: int, heads: int, twin: int, act: str) -> Part:
    # The end token 2 means: where the largest token stands, in transformers' CLIP.
    return of_transformers(
        class_name,
        {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "projection_dim": width,
            "vocab_size": 49408,
            "hidden_act": act,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        },
        {
            "hidden_size": twin,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 4 * twin,
            "projection_dim": twin,
            "vocab_size": TEXT_VOCABULARY,
        },
    )


CLIP_L = _clip("CLIPTextModelWithProjection", 768, 12, 12, 24, "quick_gelu")
CLIP_G = _clip("CLIPTextModelWithProjection", 1280, 32, 20, 32, "gelu")
CLIP_L_FLUX = _clip("CLIPTextModel", 768, 12, 12, 32, "quick_gelu")


def _tokenizer(class_name: str, kind: str, length: int, pad: str, *, whole: bool = False) -> Part:
    config = {"kind": kind, "model_max_length": length, "pad_token": pad, "whole": whole}
    return of_transformers(class_name, config)


BERT_TOKENIZER = _tokenizer("BertTokenizer", "bert", 77, "[PAD]")
CLIP_L_TOKENIZER = _tokenizer("CLIPTokenizer", "clip", 77, "<|endoftext|>")
CLIP_G_TOKENIZER = _tokenizer("CLIPTokenizer", "clip", 77, "!")
T5_FAST_TOKENIZER = _tokenizer("T5TokenizerFast", "t5", 512, "<pad>", whole=True)


def t5_tokenizer(length: int) -> Part:
    """T5's, of ``spiece.model`` alone."""
    return _tokenizer("T5Tokenizer", "t5", length, "<pad>")


def word_tokenizer(length: int = 512, kind: str = "words") -> Part:
    """What stands in for Gemma's, Llama's and, of kind ``chat``, Qwen's tokenizers."""
    return _tokenizer("PreTrainedTokenizerFast", kind, length, "<pad>")


# Schedulers

_LINEAR: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
}
_DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
DPM_PIXART = of_diffusers(
    "DPMSolverMultistepScheduler", {**_LINEAR, **_DPM, "lower_order_final": True}
)
DPM_SANA = of_diffusers(
    "DPMSolverMultistepScheduler",
    {
        **_LINEAR,
        **_DPM,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
    },
)
DDIM_DIT = of_diffusers(
    "DDIMScheduler", {**_LINEAR, "clip_sample": False, "set_alpha_to_one": True}
)


def ddpm_hunyuan(beta_end: float) -> Part:
    """The schedule ends at 0.03 in version 1.1, at 0.018 in 1.2."""
    # comfyanonymous/ComfyUI, comfy/supported_models.py: HunyuanDiT1 and HunyuanDiT
    return of_diffusers(
        "DDPMScheduler",
        {
            **_LINEAR,
            "beta_start": 0.00085,
            "beta_end": beta_end,
            "beta_schedule": "scaled_linear",
            "prediction_type": "v_prediction",
            "clip_sample": False,
            "steps_offset": 1,
        },
    )


def flow(shift: float, **values: Any) -> Part:
    """Flow matching, its noise levels shifted."""
    return of_diffusers(
        "FlowMatchEulerDiscreteScheduler",
        {"num_train_timesteps": 1000, "shift": shift, **values},
    )
