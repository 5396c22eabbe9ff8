"""Inputs of the transformers of official models' twins, as diffusers' classes take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["inputs", "normal"]

TEXT = 5  # tokens in a forward pass


def normal(*shape: int) -> Any:
    """Random numbers, the same for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def inputs(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a twin's transformer takes besides latents and timestep; `family` begins its class."""
    text = {"encoder_hidden_states": normal(1, TEXT, 64)}
    if family == "DiT":
        return {"class_labels": torch.tensor([7])}
    if family == "PixArt":
        conditions = {"resolution": torch.full((1, 2), 64.0), "aspect_ratio": torch.ones(1, 1)}
        is_used = config["use_additional_conditions"]
        return {**text, "added_cond_kwargs": conditions if is_used else dict.fromkeys(conditions)}
    if family == "Hunyuan":
        angles = normal(64, config["attention_head_dim"])  # [tokens of the image, head]
        style = config["use_style_cond_and_image_meta_size"]
        return {
            "encoder_hidden_states": normal(1, 77, 48),
            "text_embedding_mask": torch.ones(1, 77, dtype=torch.int64),
            "encoder_hidden_states_t5": normal(1, 256, 64),
            "text_embedding_mask_t5": torch.ones(1, 256, dtype=torch.int64),
            "image_meta_size": torch.full((1, 6), 64.0) if style else None,
            "style": torch.zeros(1, dtype=torch.int64) if style else None,
            "image_rotary_emb": (torch.cos(angles), torch.sin(angles)),
        }
    if family == "Flux":
        places = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(TEXT, 3)}
        guidance = torch.full((1,), 3.5) if config["guidance_embeds"] else None
        latents = {"hidden_states": normal(1, 16, 64), "guidance": guidance}
        return {**text, **places, **latents, "pooled_projections": normal(1, 32)}
    if family == "Flux2":
        places = {"img_ids": torch.zeros(16, 4), "txt_ids": torch.zeros(TEXT, 4)}
        states = normal(1, TEXT, config["joint_attention_dim"])
        latents = {"hidden_states": normal(1, 16, config["in_channels"])}
        return {**places, **latents, "encoder_hidden_states": states}
    if family == "ZImage":
        latents = {"x": [normal(config["in_channels"], 1, 8, 8)], "t": torch.tensor([0.5])}
        return {**latents, "cap_feats": [normal(TEXT, config["cap_feat_dim"])]}
    if family == "SD3":
        return {**text, "pooled_projections": normal(1, 56)}
    if family == "Lumina2":
        return {**text, "encoder_attention_mask": torch.ones(1, TEXT, dtype=torch.bool)}
    return text
