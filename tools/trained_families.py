"""What differs between the families in tools/train_demo.py: transformers, conditions, objectives."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers as untyped_diffusers
import torch
from emoji_images import pixels
from trained_family import Family, Given, Learned, Texts, captions, left_out, tokens_of
from trained_parts import (
    build_bert,
    build_clip,
    build_t5,
    build_tokenizer,
    coarser,
    new_vae,
    scaled,
    train_vae,
)
from training import BETAS, Flow, Predicted

__all__ = ["FAMILIES"]

diffusers: Any = untyped_diffusers

CAPTION_TOKENS = 16
BERT_TOKENS, MT5_TOKENS = 77, 256
"""As HunyuanDiTPipeline pads its texts."""
CLIP_TOKENS, NO_T5_TOKENS = 77, 16
"""As StableDiffusion3Pipeline pads its texts; zeros in the place of T5's states."""
NO_CLASS = 1000
"""As DiTPipeline numbers the absence of a class."""
HUNYUAN_BETAS = {
    **BETAS,
    "beta_start": 0.00085,
    "beta_end": 0.018,
    "beta_schedule": "scaled_linear",
}


def _solver(betas: Mapping[str, Any], **options: Any) -> Any:
    return diffusers.DPMSolverMultistepScheduler(
        **betas, solver_order=2, algorithm_type="dpmsolver++", **options
    )


def _predicted(betas: Mapping[str, Any], *, velocity: bool = False) -> Predicted:
    return Predicted(diffusers.DDPMScheduler(**betas).alphas_cumprod, velocity)


# PixArt: text through a T5 that learns with it, unless it is kept


def _pixart() -> Any:
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=4,
        out_channels=8,
        num_layers=8,
        cross_attention_dim=192,
        sample_size=16,
        patch_size=2,
        caption_channels=128,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )


def _learn_pixart(given: Given) -> Learned:
    items = given.items
    if given.parts is None:
        vae = train_vae(new_vae(), pixels(given.everything), given.vae_budget)
        tokenizer = build_tokenizer(given.everything)
        vae, encoder = scaled(vae, given.everything), build_t5(len(tokenizer))
    else:
        kept = given.pipeline()
        vae, tokenizer, encoder = kept.vae, kept.tokenizer, kept.text_encoder

    def conditions(pick: Sequence[int]) -> dict[str, Any]:
        texts = ["" if left_out() else random.choice(captions(items[i])) for i in pick]
        tokens = tokens_of(tokenizer, texts, CAPTION_TOKENS)
        mask = tokens.attention_mask
        with torch.set_grad_enabled(given.parts is None):
            states = encoder(tokens.input_ids, attention_mask=mask)[0]
        return {
            "encoder_hidden_states": states,
            "encoder_attention_mask": mask.float(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }

    parts = {"tokenizer": tokenizer, "text_encoder": encoder}
    if given.parts is None:
        return Learned(vae, parts, conditions, [encoder])
    return Learned(vae, parts, conditions, kept={name: name for name in ("vae", *parts)})


# DiT: a class for each image


def _dit() -> Any:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=4,
        out_channels=8,
        num_layers=6,
        sample_size=16,
        patch_size=2,
        num_embeds_ada_norm=NO_CLASS,
        norm_type="ada_norm_zero",
    ).eval()  # in training each block would leave out classes of its own choice


def _learn_dit(given: Given) -> Learned:
    names = {str(i): item.short for i, item in enumerate(given.items)}

    def conditions(pick: Sequence[int]) -> dict[str, Any]:
        return {"class_labels": torch.tensor([NO_CLASS if left_out() else i for i in pick])}

    return Learned(
        given.pipeline().vae, {}, conditions, kept={"vae": "vae"}, index={"id2label": names}
    )


def _first_classes(transformer: Any) -> None:
    for name, table in transformer.named_modules():
        if name.endswith("embedding_table"):  # most rows are never used, and stay zero
            torch.nn.init.zeros_(table.weight)


# Hunyuan-DiT: long skips; a BERT of random weights beside T5; an autoencoder half as fine, since the
# pipeline computes positions for one of factor 8


def _hunyuan() -> Any:
    return diffusers.HunyuanDiT2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=16,
        patch_size=1,
        sample_size=8,
        hidden_size=128,
        num_layers=6,
        mlp_ratio=4.0,
        cross_attention_dim=64,
        cross_attention_dim_t5=128,
        pooled_projection_dim=64,
        text_len=BERT_TOKENS,
        text_len_t5=MT5_TOKENS,
        use_style_cond_and_image_meta_size=False,
    )


def _learn_hunyuan(given: Given) -> Learned:
    kept = given.pipeline()
    vae = train_vae(coarser(kept.vae), pixels(given.items), given.vae_budget)
    tokenizer, mt5 = kept.tokenizer, kept.text_encoder
    bert = build_bert(len(tokenizer), BERT_TOKENS)
    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    grid = get_2d_rotary_pos_embed(32, ((0, 0), (64, 64)), (8, 8), output_type="pt")

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        found = {}
        for encoder, length, name in ((bert, BERT_TOKENS, ""), (mt5, MT5_TOKENS, "_t5")):
            tokens = tokens_of(tokenizer, texts, length)
            states = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
            found[f"encoder_hidden_states{name}"] = states
            found[f"text_embedding_mask{name}"] = tokens.attention_mask
        return found

    texts = Texts(given.items, encode)
    parts = {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "text_encoder": bert,
        "text_encoder_2": mt5,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return Learned(
        scaled(vae, given.everything),
        parts,
        lambda pick: {**texts(pick), "image_rotary_emb": grid},
        kept={
            "tokenizer": "tokenizer",
            "tokenizer_2": "tokenizer",
            "text_encoder_2": "text_encoder",
        },
    )


# Stable Diffusion 3: two streams; two CLIPs of random weights, no T5


def _sd3() -> Any:
    return diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=24,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=96,
        pooled_projection_dim=128,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def _learn_sd3(given: Given) -> Learned:
    kept = given.pipeline()
    tokenizer = kept.tokenizer
    clips = [build_clip(len(tokenizer), CLIP_TOKENS) for _ in range(2)]

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        ids = tokens_of(tokenizer, texts, CLIP_TOKENS).input_ids
        found = [clip(ids, output_hidden_states=True) for clip in clips]
        states = torch.cat([one.hidden_states[-2] for one in found], 2)
        return {
            "encoder_hidden_states": torch.nn.functional.pad(states, (0, 0, 0, NO_T5_TOKENS)),
            "pooled_projections": torch.cat([one.text_embeds for one in found], 1),
        }

    parts = {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "tokenizer_3": None,
        "text_encoder": clips[0],
        "text_encoder_2": clips[1],
        "text_encoder_3": None,
    }
    names = ("tokenizer", "tokenizer_2")
    return Learned(
        kept.vae,
        parts,
        Texts(given.items, encode),
        kept={"vae": "vae", **dict.fromkeys(names, "tokenizer")},
        settings={
            f"{name}/tokenizer_config.json": {"model_max_length": CLIP_TOKENS} for name in names
        },
    )


FAMILIES: Mapping[str, Family] = {
    "pixart": Family(
        pipeline="PixArtAlphaPipeline",
        transformer=_pixart,
        learn=_learn_pixart,
        objective=lambda: _predicted(BETAS),
        scheduler=lambda: _solver(BETAS),
        sampling={"steps": 20, "guidance": 3.0, "max_sequence_length": CAPTION_TOKENS},
        small=("adaln_single.*", "caption_projection.*"),
        zero=("transformer_blocks.*.attn2.to_out.0", "proj_out"),
    ),
    "dit": Family(
        pipeline="DiTPipeline",
        transformer=_dit,
        learn=_learn_dit,
        objective=lambda: _predicted(BETAS),
        scheduler=lambda: _solver(BETAS),
        sampling={"steps": 12, "guidance": 3.0, "max_sequence_length": 0},
        small=("*.norm1.*", "proj_out_1"),
        zero=("proj_out_2",),
        further=_first_classes,
    ),
    "hunyuan": Family(
        pipeline="HunyuanDiTPipeline",
        transformer=_hunyuan,
        learn=_learn_hunyuan,
        objective=lambda: _predicted(HUNYUAN_BETAS, velocity=True),
        scheduler=lambda: _solver(HUNYUAN_BETAS, prediction_type="v_prediction"),
        sampling={"steps": 12, "guidance": 3.0, "max_sequence_length": BERT_TOKENS},
        small=("time_extra_emb.*", "text_embedder.*", "blocks.*.norm1.linear", "norm_out.linear"),
        zero=("blocks.*.attn2.to_out.0", "proj_out"),
    ),
    "sd3": Family(
        pipeline="StableDiffusion3Pipeline",
        transformer=_sd3,
        learn=_learn_sd3,
        objective=Flow,
        scheduler=lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
        sampling={"steps": 12, "guidance": 3.0, "max_sequence_length": NO_T5_TOKENS},
        small=("time_text_embed.*", "*.norm1.linear", "*.norm1_context.linear", "norm_out.linear"),
        zero=("proj_out",),
    ),
}
"""By the option's value."""
