"""Official configurations of diffusers pipelines, by short name, and what differs in a small twin.

Facts only: see official_parts.py, which has the parts that several pipelines share.

A twin has the same classes and the same switches, a width below 100, a few blocks, and images of
64 or 128 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

from official_parts import (
    BERT,
    BERT_TOKENIZER,
    CLIP_G,
    CLIP_G_TOKENIZER,
    CLIP_L,
    CLIP_L_FLUX,
    CLIP_L_TOKENIZER,
    DDIM_DIT,
    DPM_PIXART,
    DPM_SANA,
    GEMMA2,
    MT5_XL,
    PILE_T5_XL,
    QWEN3,
    QWEN3_LM,
    T5_FAST_TOKENIZER,
    T5_XXL,
    VAE_DC,
    VAE_FLUX,
    VAE_FLUX2,
    VAE_SD,
    VAE_SD3,
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

ABSENT = [None, None]
"""What model_index.json has for a part that was left out."""
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
_SMALL: Config = {"num_attention_heads": 4, "attention_head_dim": 24}
_PIXART: Config = {
    **_XL,
    "norm_type": "ada_norm_single",
    "norm_eps": 1e-6,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
}
_PIXART_TWIN: Config = {
    **_SMALL,
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
        **_SMALL,
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
        {**_SMALL, "num_layers": 4, "sample_size": twin_pixels // 8},
        ("Transformer2DModel", {**_LEGACY, "cross_attention_dim": None}),
    )
    # ImageNet's classes are named by their numbers.
    index = {"id2label": {str(i): f"class {i}" for i in range(1000)}}
    parts = {"scheduler": DDIM_DIT, "transformer": transformer, "vae": VAE_SD}
    return Pipeline("DiTPipeline", parts, index)


_SD3: Config = {
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "sample_size": 128,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
}


def _sd3(layers: int, positions: int, dual: int = 0, qk_norm: str | None = None) -> Pipeline:
    # The newer ones, with qk_norm, were saved by a pipeline that knows of image prompts.
    index = dict.fromkeys(("feature_extractor", "image_encoder"), ABSENT) if qk_norm else {}
    config = {
        **_SD3,
        "num_layers": layers,
        "num_attention_heads": layers,
        "caption_projection_dim": 64 * layers,
        "pos_embed_max_size": positions,
        "dual_attention_layers": list(range(dual)),
        "qk_norm": qk_norm,
    }
    twin = {
        **_SMALL,
        "num_layers": 4,
        "caption_projection_dim": 96,
        "pos_embed_max_size": positions // 8,
        "dual_attention_layers": list(range(min(dual, 2))),
        "sample_size": 16,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 56,
    }
    parts = {
        "scheduler": flow(3.0),
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
        "text_encoder_3": T5_XXL,
        "tokenizer": CLIP_L_TOKENIZER,
        "tokenizer_2": CLIP_G_TOKENIZER,
        "tokenizer_3": T5_FAST_TOKENIZER,
        "transformer": of_diffusers(
            "SD3Transformer2DModel", config, twin, shards=2 if layers > 24 else 1
        ),
        "vae": VAE_SD3,
    }
    return Pipeline("StableDiffusion3Pipeline", parts, index)


def _flux(*, guidance: bool, scheduler: Part) -> Pipeline:
    config = {
        "num_layers": 19,
        "num_single_layers": 38,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56],
        "in_channels": 64,
        "patch_size": 1,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": guidance,
    }
    twin = {
        **_SMALL,
        "num_layers": 2,
        "num_single_layers": 2,
        "axes_dims_rope": [4, 10, 10],
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
    }
    parts = {
        "scheduler": scheduler,
        "text_encoder": CLIP_L_FLUX,
        "text_encoder_2": T5_XXL,
        "tokenizer": CLIP_L_TOKENIZER,
        "tokenizer_2": T5_FAST_TOKENIZER,
        "transformer": of_diffusers("FluxTransformer2DModel", config, twin, shards=3),
        "vae": VAE_FLUX,
    }
    return Pipeline("FluxPipeline", parts)


_FLUX_DEV_SCHEDULER = flow(
    3.0,
    use_dynamic_shifting=True,
    base_shift=0.5,
    max_shift=1.15,
    base_image_seq_len=256,
    max_image_seq_len=4096,
)


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
        **_SMALL,
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


def _aura_flow() -> Pipeline:
    config = {
        "num_mmdit_layers": 4,
        "num_single_dit_layers": 32,
        "num_attention_heads": 12,
        "attention_head_dim": 256,
        "joint_attention_dim": 2048,
        "caption_projection_dim": 3072,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 2,
        "sample_size": 64,
        "pos_embed_max_size": 1024,
    }
    twin = {
        **_SMALL,
        "num_mmdit_layers": 2,
        "num_single_dit_layers": 2,
        "joint_attention_dim": 64,
        "caption_projection_dim": 96,
        "sample_size": 16,
        "pos_embed_max_size": 64,
    }
    parts = {
        "scheduler": flow(1.73),
        "text_encoder": PILE_T5_XL,
        "tokenizer": word_tokenizer(),
        "transformer": of_diffusers("AuraFlowTransformer2DModel", config, twin),
        "vae": VAE_SDXL,
    }
    return Pipeline("AuraFlowPipeline", parts)


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


def _z_image() -> Pipeline:
    # diffusers' defaults of the class; Z-Image-Turbo
    config = {
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": 16,
        "dim": 3840,
        "n_layers": 30,
        "n_refiner_layers": 2,
        "n_heads": 30,
        "n_kv_heads": 30,
        "cap_feat_dim": 2560,
        "axes_dims": [32, 48, 48],
        "axes_lens": [1536, 512, 512],
    }
    twin = {
        "dim": 96,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 4,
        "n_kv_heads": 4,
        "cap_feat_dim": 32,
        "axes_dims": [8, 8, 8],
    }
    parts = {
        "scheduler": flow(3.0),
        "text_encoder": QWEN3,
        "tokenizer": word_tokenizer(kind="chat"),
        "transformer": of_diffusers("ZImageTransformer2DModel", config, twin, shards=3),
        "vae": VAE_FLUX,
    }
    return Pipeline("ZImagePipeline", parts)


def _flux2_klein() -> Pipeline:
    # black-forest-labs/FLUX.2-klein-4B
    config = {
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "axes_dims_rope": [32, 32, 32, 32],
        "in_channels": 128,
        "patch_size": 1,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
    }
    twin = {
        **_SMALL,
        "num_layers": 2,
        "num_single_layers": 2,
        "axes_dims_rope": [6, 6, 6, 6],
        "joint_attention_dim": 96,
    }
    parts = {
        "scheduler": _FLUX_DEV_SCHEDULER,
        "text_encoder": QWEN3_LM,
        "tokenizer": word_tokenizer(kind="chat"),
        "transformer": of_diffusers("Flux2Transformer2DModel", config, twin, shards=1),
        "vae": VAE_FLUX2,
    }
    return Pipeline("Flux2KleinPipeline", parts, {"is_distilled": True})


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
    "sd3-medium": _sd3(24, 192),
    "sd3.5-medium": _sd3(24, 384, dual=13, qk_norm="rms_norm"),
    "sd3.5-large": _sd3(38, 192, qk_norm="rms_norm"),
    "flux-dev": _flux(guidance=True, scheduler=_FLUX_DEV_SCHEDULER),
    "flux-schnell": _flux(guidance=False, scheduler=flow(1.0)),
    "auraflow": _aura_flow(),
    "z-image": _z_image(),
    "flux2-klein-4b": _flux2_klein(),
    "lumina2": _lumina2(),
}
"""By short name."""
