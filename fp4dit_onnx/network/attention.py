"""Attention in torch, for open sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["AttentionProcessor"]


@dataclass(frozen=True)
class AttentionProcessor:
    """Attention processor with unflatten and flatten in place of diffusers' view(batch, ...).

    It stands in for AttnProcessor2_0 and HunyuanAttnProcessor2_0.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        **unused: Any,
    ) -> torch.Tensor:
        """[B, S, C] -> [B, S, C].

        Args:
            attn: the module; its `norm_q` and `norm_k`, if any, work on each head by itself.
            hidden_states: [B, S, C].
            encoder_hidden_states: [B, L, C'] to attend to; None for `hidden_states`.
            attention_mask: bias [B, 1, L] of the scores.
            image_rotary_emb: cosines and sines [.., S, D] of the queries' and, in self-attention, the
                keys' rotation.
            unused: what diffusers gives its own processors.
        """
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(x: torch.Tensor) -> torch.Tensor:
            parts: torch.Tensor = x.unflatten(-1, (attn.heads, -1))  # type: ignore[no-untyped-call]
            return parts  # [B, S, C] -> [B, S, H, D]

        q, k = heads(attn.to_q(hidden_states)), heads(attn.to_k(context))
        q = q if getattr(attn, "norm_q", None) is None else attn.norm_q(q)
        k = k if getattr(attn, "norm_k", None) is None else attn.norm_k(k)
        if image_rotary_emb is not None:
            q = _rotated(q, *image_rotary_emb)
            k = k if attn.is_cross_attention else _rotated(k, *image_rotary_emb)
        bias = None if attention_mask is None else attention_mask.unsqueeze(1)  # [B, 1, 1, L]
        v = heads(attn.to_v(context))
        y = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias
        )
        out: torch.Tensor = attn.to_out[0](
            y.transpose(1, 2).flatten(2)
        )  # [B, H, S, D] -> [B, S, C]
        return out


def _rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Each pair of neighbours of `x` [B, S, H, D] turned by the angle of its token, [.., S, D]."""
    pairs: torch.Tensor = x.unflatten(-1, (-1, 2))  # type: ignore[no-untyped-call]
    even, odd = pairs.unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return x * cosine.unsqueeze(-2) + turned * sine.unsqueeze(-2)
