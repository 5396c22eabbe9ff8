"""Official configurations of diffusers pipelines, by short name, and what differs in a small twin.

Facts only: see `official.parts`, which has the parts that several pipelines share.

A twin has the same classes and the same switches, a width below 100, a few blocks, and images of
64 or 128 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

from fp4dit_onnx.official.joint import (
    FLUX_DEV_SCHEDULER,
    aura_flow,
    flux,
    flux2_klein,
    sd3,
    z_image,
)
from fp4dit_onnx.official.parts import (
    ABSENT,
    BERT,
    BERT_TOKENIZER,
    DDIM_DIT,
    DPM_PIXART,
    DPM_SANA,
    GEMMA2,
    MT5_XL,
    SMALL,
    T5_XXL,
    VAE_DC,
    VAE_FLUX,
    VAE_SD,
    VAE_SDXL,
    Config,
    Part,
    Pipeline,
    ddpm_hunyuan,
    flow,
    of_diffusers,
    t5_tokenizer,
    word_tokenizer,
)

__all__ = ["MODELS", "Part", "Pipeline"]

_LEGACY: Config = {
    "norm_num_groups": 32,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_linear_projection": False,
    "upcast_attention": False,
    "dropout": 0.0,
}
"""Values that published files of `Transformer2DModel` have, now two classes in diffusers."""
_XL: Config = {
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_elementwise_affine": False,
}
_PIXART: Config = {
    **_XL,
    "norm_type": "ada_norm_single",
    "norm_eps": 1e-6,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
}
_PIXART_TWIN: Config = {
    **SMALL,
    "num_layers": 4,
    "cross_attention_dim": 96,
    "caption_channels": 64,
}


def _pixart(family: str, pixels: int, twin_pixels: int) -> Pipeline:
    # diffusers' pipeline gives the micro-conditions at sample size 128 only. To generate
    # images with a twin, set it in the config.json, and height and width: no weight depends on it.
    sample, is_alpha = pixels // 8, family == "Alpha"
    # Published files of PixArt-alpha leave both to the class, whose rules these are.
    derived = {
        "interpolation_scale": max(sample // 64, 1),
        "use_additional_conditions": is_alpha and sample == 128,
    }
    transformer = Part(
        "diffusers",
        "PixArtTransformer2DModel",
        {**_PIXART, "sample_size": sample, **({} if is_alpha else derived)},
        {**_PIXART_TWIN, "sample_size": twin_pixels // 8, **derived},
        ("Transformer2DModel", {**_LEGACY, "double_self_attention": False}),
    )
    parts = {
        "scheduler": DPM_PIXART,
        "text_encoder": T5_XXL,
        "tokenizer": t5_tokenizer(512 if is_alpha else 300),
        "transformer": transformer,
        "vae": VAE_SD if is_alpha else VAE_SDXL,
    }
    return Pipeline(f"PixArt{family}Pipeline", parts)


def _hunyuan(*, style: bool, beta_end: float) -> Pipeline:
    config = {
        "num_layers": 40,
        "num_attention_heads": 16,
        "attention_head_dim": 88,
        "hidden_size": 1408,
        "mlp_ratio": 4.3637,
        "in_channels": 4,
        "learn_sigma": True,
        "patch_size": 2,
        "sample_size": 128,
        "activation_fn": "gelu-approximate",
        "norm_type": "layer_norm",
        "cross_attention_dim": 1024,
        "cross_attention_dim_t5": 2048,
        "pooled_projection_dim": 1024,
        "text_len": 77,
        "text_len_t5": 256,
        "use_style_cond_and_image_meta_size": style,
    }
    # An even number of blocks: the later half takes back what the earlier half puts aside.
    twin = {
        **SMALL,
        "num_layers": 6,
        "hidden_size": 96,
        "mlp_ratio": 4.34,
        "sample_size": 16,
        "cross_attention_dim": 48,
        "cross_attention_dim_t5": 64,
        "pooled_projection_dim": 48,
    }
    parts = {
        "scheduler": ddpm_hunyuan(beta_end),
        "text_encoder": BERT,
        "text_encoder_2": MT5_XL,
        "tokenizer": BERT_TOKENIZER,
        "tokenizer_2": t5_tokenizer(256),
        "transformer": of_diffusers("HunyuanDiT2DModel", config, twin),
        "vae": VAE_SDXL,
    }
    index = {
        "requires_safety_checker": True,
        "safety_checker": ABSENT,
        "feature_extractor": ABSENT,
    }
    return Pipeline("HunyuanDiTPipeline", parts, index)


def _dit(pixels: int, twin_pixels: int) -> Pipeline:
    config = {**_XL, "norm_type": "ada_norm_zero", "sample_size": pixels // 8}
    transformer = Part(
        "diffusers",
        "DiTTransformer2DModel",
        config,
        {**SMALL, "num_layers": 4, "sample_size": twin_pixels // 8},
        ("Transformer2DModel", {**_LEGACY, "cross_attention_dim": None}),
    )
    # ImageNet's classes are named by their numbers.
    index = {"id2label": {str(i): f"class {i}" for i in range(1000)}}
    parts = {"scheduler": DDIM_DIT, "transformer": transformer, "vae": VAE_SD}
    return Pipeline("DiTPipeline", parts, index)


def _sana() -> Pipeline:
    config = {
        "num_layers": 20,
        "num_attention_heads": 70,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 20,
        "cross_attention_head_dim": 112,
        "cross_attention_dim": 2240,
        "caption_channels": 2304,
        "in_channels": 32,
        "out_channels": 32,
        "mlp_ratio": 2.5,
        "attention_bias": False,
        "sample_size": 32,
        "patch_size": 1,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "interpolation_scale": None,
    }
    twin = {
        **SMALL,
        "num_layers": 3,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 48,
        "cross_attention_dim": 96,
        "caption_channels": 64,
        "sample_size": 4,
    }
    parts = {
        "scheduler": DPM_SANA,
        "text_encoder": GEMMA2,
        "tokenizer": word_tokenizer(),
        "transformer": of_diffusers("SanaTransformer2DModel", config, twin),
        "vae": VAE_DC,
    }
    return Pipeline("SanaPipeline", parts)


def _lumina2() -> Pipeline:
    # sgl-project/sglang, its test of Alpha-VLLM/Lumina-Image-2.0
    config = {
        "num_layers": 26,
        "num_refiner_layers": 2,
        "num_attention_heads": 24,
        "num_kv_heads": 8,
        "hidden_size": 2304,
        "cap_feat_dim": 2304,
        "axes_dim_rope": [32, 32, 32],
        "axes_lens": [300, 512, 512],
        "in_channels": 16,
        "patch_size": 2,
        "sample_size": 128,
        "multiple_of": 256,
        "norm_eps": 1e-5,
        "scaling_factor": 1.0,
    }
    twin = {
        "num_layers": 3,
        "num_refiner_layers": 1,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "hidden_size": 96,
        "cap_feat_dim": 64,
        "axes_dim_rope": [8, 8, 8],
        "axes_lens": [300, 64, 64],
        "sample_size": 16,
        "multiple_of": 32,
    }
    parts = {
        "scheduler": flow(6.0),
        "text_encoder": GEMMA2,
        "tokenizer": word_tokenizer(),
        "transformer": of_diffusers("Lumina2Transformer2DModel", config, twin),
        "vae": VAE_FLUX,
    }
    return Pipeline("Lumina2Pipeline", parts)


MODELS: Mapping[str, Pipeline] = {
    "pixart-alpha-256": _pixart("Alpha", 256, 64),
    "pixart-alpha-512": _pixart("Alpha", 512, 64),
    "pixart-alpha-1024-ms": _pixart("Alpha", 1024, 128),
    "pixart-sigma-512": _pixart("Sigma", 512, 64),
    "pixart-sigma-1024-ms": _pixart("Sigma", 1024, 128),
    "pixart-sigma-2k-ms": _pixart("Sigma", 2048, 128),
    "hunyuan-dit-1.1": _hunyuan(style=True, beta_end=0.03),
    "hunyuan-dit-1.2": _hunyuan(style=False, beta_end=0.018),
    "dit-xl-2-256": _dit(256, 64),
    "dit-xl-2-512": _dit(512, 128),
    "sana-1600m": _sana(),
    "sd3-medium": sd3(24, 192),
    "sd3.5-medium": sd3(24, 384, dual=13, qk_norm="rms_norm"),
    "sd3.5-large": sd3(38, 192, qk_norm="rms_norm"),
    "flux-dev": flux(guidance=True, scheduler=FLUX_DEV_SCHEDULER),
    "flux-schnell": flux(guidance=False, scheduler=flow(1.0)),
    "auraflow": aura_flow(),
    "z-image": z_image(),
    "flux2-klein-4b": flux2_klein(),
    "lumina2": _lumina2(),
}
"""By short name."""
