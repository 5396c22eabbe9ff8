"""Makes a network traceable with every size open: what diffusers computes in Python is done in torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fp4dit_onnx.network.attention import AttentionProcessor
from fp4dit_onnx.network.positions import cropped_table, sincos_table

__all__ = ["dynamic"]

PROCESSORS = (
    "AttnProcessor",
    "AttnProcessor2_0",
    "HunyuanAttnProcessor2_0",
    "SanaAttnProcessor2_0",
)
"""Attention processors of diffusers that fix sizes and that `AttentionProcessor` stands in for."""


def _patch_embed(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """`forward` of diffusers' PatchEmbed without a comparison of sizes."""

    def forward(latent: torch.Tensor) -> torch.Tensor:
        height, width = (size // module.patch_size for size in latent.shape[-2:])
        x: torch.Tensor = module.proj(latent)
        if module.flatten:
            x = x.flatten(2).transpose(1, 2)  # [B, C, H, W] -> [B, H W, C]
        if module.layer_norm:
            x = module.norm(x)
        if module.pos_embed is None:
            return x
        if module.pos_embed_max_size:
            side = module.pos_embed_max_size
            return x + cropped_table(module.pos_embed, side, height, width)
        channels, scale = module.proj.out_channels, module.interpolation_scale
        table = sincos_table(height, width, channels, module.base_size, scale)
        return x + (table if (table.device, table.dtype) == (x.device, x.dtype) else table.to(x))

    return forward


def _dit(network: Any) -> Callable[..., tuple[torch.Tensor]]:
    """`forward` of diffusers' DiTTransformer2DModel, which assumes a square image."""

    def forward(
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        patch = network.patch_size
        height, width = (size // patch for size in hidden_states.shape[-2:])
        x = network.pos_embed(hidden_states)
        for block in network.transformer_blocks:
            x = block(x, timestep=timestep, class_labels=class_labels)
        embed = network.transformer_blocks[0].norm1.emb
        given = torch.nn.functional.silu(embed(timestep, class_labels, hidden_dtype=x.dtype))
        shift, scale = network.proj_out_1(given).unsqueeze(1).chunk(2, dim=-1)
        x = network.proj_out_2(network.norm_out(x) * (1 + scale) + shift)
        x = x.unflatten(1, (height, width)).unflatten(-1, (patch, patch, -1))  # [B, H, W, P, P, C]
        return (x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3),)

    return forward


def _multiscale_attention(module: Any) -> Callable[[torch.Tensor], Any]:
    """`forward` of diffusers' SanaMultiscaleLinearAttention, linear at every size, as large ones are."""

    def forward(x: torch.Tensor) -> Any:
        tokens = x.movedim(1, -1)  # [B, C, H, W] -> [B, H, W, C]
        made = torch.cat([to(tokens) for to in (module.to_q, module.to_k, module.to_v)], dim=3)
        made = made.movedim(-1, 1)
        made = torch.cat([made, *(scale(made) for scale in module.to_qkv_multiscale)], dim=1)
        heads = made.flatten(2).unflatten(1, (-1, 3 * module.attention_head_dim))  # type: ignore[no-untyped-call]
        q, k, v = heads.chunk(3, dim=2)  # [B, heads, D, H W]
        act = module.nonlinearity
        y = module.apply_linear_attention(act(q), act(k), v).flatten(1, 2)
        y = module.to_out(y.unflatten(2, x.shape[2:]).movedim(1, -1))
        y = module.norm_out(y) if module.norm_type == "rms_norm" else y
        y = y.movedim(-1, 1)
        y = y if module.norm_type == "rms_norm" else module.norm_out(y)
        return x + y if module.residual_connection else y

    return forward


FORWARDS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "DiTTransformer2DModel": _dit,
    "PatchEmbed": _patch_embed,
    "SanaMultiscaleLinearAttention": _multiscale_attention,
}
"""Class of diffusers -> the forward that takes the place of its own."""


@contextlib.contextmanager
def dynamic(network: torch.nn.Module) -> Iterator[None]:
    """While open, `network` computes the same and can be traced with any of its sizes open."""
    patched = [m for m in network.modules() if type(m).__name__ in FORWARDS]
    processors = dict(getattr(network, "attn_processors", {}))
    ours = {
        name: AttentionProcessor() if type(own).__name__ in PROCESSORS else own
        for name, own in processors.items()
    }
    for module in patched:
        module.forward = FORWARDS[type(module).__name__](module)
    if processors:
        network.set_attn_processor(dict(ours))  # type: ignore[operator]
    try:
        yield
    finally:
        for module in patched:
            del module.forward
        if processors:
            network.set_attn_processor(processors)  # type: ignore[operator]
