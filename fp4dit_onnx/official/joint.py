"""Official pipelines whose attention joins text and image: SD3, Flux, AuraFlow, Z-Image, FLUX.2.

Facts only, as in `official.models`.
"""

from __future__ import annotations

from fp4dit_onnx.official.parts import (
    ABSENT,
    CLIP_G,
    CLIP_G_TOKENIZER,
    CLIP_L,
    CLIP_L_FLUX,
    CLIP_L_TOKENIZER,
    PILE_T5_XL,
    QWEN3,
    QWEN3_LM,
    SMALL,
    T5_FAST_TOKENIZER,
    T5_XXL,
    VAE_FLUX,
    VAE_FLUX2,
    VAE_SD3,
    VAE_SDXL,
    Config,
    Part,
    Pipeline,
    flow,
    of_diffusers,
    word_tokenizer,
)

__all__ = ["FLUX_DEV_SCHEDULER", "aura_flow", "flux", "flux2_klein", "sd3", "z_image"]

_SD3: Config = {
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "sample_size": 128,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
}


def sd3(layers: int, positions: int, dual: int = 0, qk_norm: str | None = None) -> Pipeline:
    """Stable Diffusion 3 and 3.5; `dual` blocks from the first on attend twice."""
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
        **SMALL,
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


FLUX_DEV_SCHEDULER = flow(
    3.0,
    use_dynamic_shifting=True,
    base_shift=0.5,
    max_shift=1.15,
    base_image_seq_len=256,
    max_image_seq_len=4096,
)


def flux(*, guidance: bool, scheduler: Part) -> Pipeline:
    """FLUX.1, told a guidance scale or not."""
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
        **SMALL,
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


def aura_flow() -> Pipeline:
    """AuraFlow."""
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
        **SMALL,
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


def z_image() -> Pipeline:
    """Z-Image."""
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


def flux2_klein() -> Pipeline:
    """FLUX.2-klein with 4 B parameters."""
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
        **SMALL,
        "num_layers": 2,
        "num_single_layers": 2,
        "axes_dims_rope": [6, 6, 6, 6],
        "joint_attention_dim": 96,
    }
    parts = {
        "scheduler": FLUX_DEV_SCHEDULER,
        "text_encoder": QWEN3_LM,
        "tokenizer": word_tokenizer(kind="chat"),
        "transformer": of_diffusers("Flux2Transformer2DModel", config, twin, shards=1),
        "vae": VAE_FLUX2,
    }
    return Pipeline("Flux2KleinPipeline", parts, {"is_distilled": True})
