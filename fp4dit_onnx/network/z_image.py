"""Z-Image's transformer over batches: diffusers' own takes lists of images and of texts.

Image and text are filled up to multiples of 32 tokens, with tokens that are learned and take part in
attention. diffusers does this image by image, here tensors have room for the longest text, and a
mask says what of it counts. Rotations are real instead of complex, which no ONNX graph has.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import diffusers
import torch

from fp4dit_onnx.network.attention import AttentionProcessor

__all__ = ["BatchedZImage", "Listed", "batch_of_lists"]

MULTIPLE = 32
"""Tokens of image and text are filled up to one."""
PATCH = 2
HIDDEN = -10000.0
"""Added to the scores of keys that do not count."""


class _Processor(AttentionProcessor):
    """Attention with a rotation of each row's own."""

    def __call__(  # type: ignore[override] # diffusers' name for the rotation is another here
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        freqs_cis: Any = None,
        **unused: Any,
    ) -> torch.Tensor:
        """[B, S, C] -> [B, S, C].

        Args:
            attn: the module.
            hidden_states: [B, S, C].
            encoder_hidden_states: none.
            attention_mask: bias [B, 1, S] of the scores.
            freqs_cis: angles [B, S, D / 2] of pairs of channels.
            unused: nothing.
        """
        angles = freqs_cis.repeat_interleave(2, dim=-1)  # [B, S, D]
        turn = angles.cos(), angles.sin()
        return super().__call__(attn, hidden_states, None, attention_mask, turn)


_Base: Any = diffusers.ZImageTransformer2DModel


class BatchedZImage(_Base):  # type: ignore[misc]
    """diffusers' ZImageTransformer2DModel, with batches in the place of lists.

    Its configuration has the `patch_size` that the pipeline asks for.
    """

    @functools.wraps(_Base.__init__)  # type: ignore[misc] # its parameters make a config
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_to_config(patch_size=PATCH)
        for module in self.modules():
            if hasattr(module, "set_processor"):
                module.set_processor(_Processor())

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """Predictions [B, C, H, W].

        Args:
            hidden_states: latents [B, C, H, W].
            encoder_hidden_states: [B, L, D].
            timestep: share of data in the latents, [B].
            encoder_attention_mask: 1 for the tokens of a text, int64 [B, L]; they come first.
            return_dict: a tuple is returned in any case.
        """
        height, width = (size // PATCH for size in hidden_states.shape[-2:])
        count, length = height * width, encoder_hidden_states.shape[1]
        time = self.t_embedder(timestep * self.t_scale)
        latents: Any = hidden_states  # torch has no types of unflatten
        squares = latents.unflatten(3, (width, PATCH)).unflatten(2, (height, PATCH))
        tokens = squares.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [B, H W, P P C]
        place = torch.arange(_filled(count), device=hidden_states.device)
        real, inside = place < count, place.clamp(max=count - 1)
        x = self.all_x_embedder[f"{PATCH}-1"](tokens).index_select(1, inside)
        x = torch.where(real[:, None], x, self.x_pad_token)
        tokens_of = encoder_attention_mask.sum(dim=1, keepdim=True)  # [B, 1]
        counted = _filled(tokens_of)
        order = torch.arange(_filled(length), device=place.device)
        text = self.cap_embedder(encoder_hidden_states)
        text = text.index_select(1, order.clamp(max=length - 1))
        text = torch.where((order < tokens_of)[..., None], text, self.cap_pad_token)
        bias = torch.where(order < counted, 0.0, HIDDEN).unsqueeze(1)  # [B, 1, L]
        zero = torch.zeros_like(bias[:, 0])
        text_angles = self._angles(order + 1 + zero, zero, zero)
        shown = real + torch.zeros_like(counted)  # [B, tokens]
        # Without division by a size, which torch.onnx does not translate.
        row, column = (torch.arange(size, device=place.device) for size in (height, width))
        grid = row[:, None].expand(height, width), column.expand(height, width)
        rows, columns = (axis.flatten().index_select(0, inside) for axis in grid)
        image_angles = self._angles((counted + 1) * shown, rows * shown, columns * shown)
        for layer in self.noise_refiner:
            x = layer(x, torch.zeros_like(shown, dtype=x.dtype).unsqueeze(1), image_angles, time)
        for layer in self.context_refiner:
            text = layer(text, bias, text_angles)
        both = torch.cat([x, text], dim=1)
        bias = torch.cat([torch.zeros_like(shown, dtype=x.dtype).unsqueeze(1), bias], dim=2)
        angles = torch.cat([image_angles, text_angles], dim=1)
        for layer in self.layers:
            both = layer(both, bias, angles, time)
        output = self.all_final_layer[f"{PATCH}-1"](both, c=time)
        output = output.narrow(1, 0, count).unflatten(1, (height, width))
        output = output.unflatten(-1, (PATCH, PATCH, self.out_channels))
        return (output.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3),)

    def _angles(self, *places: torch.Tensor) -> torch.Tensor:
        """Of tokens whose place along each axis is given, [B, S] each, float32 [B, S, D / 2]."""
        parts = []
        for place, size in zip(places, self.axes_dims, strict=True):
            at = torch.arange(0, size, 2, dtype=torch.float64, device=place.device) / size
            parts.append((place.double().unsqueeze(-1) * (1 / self.rope_theta**at)).float())
        return torch.cat(parts, dim=-1)


def _filled(count: Any) -> Any:
    """The next multiple of 32."""
    return (count + MULTIPLE - 1) // MULTIPLE * MULTIPLE


def batch_of_lists(
    x: Sequence[torch.Tensor], t: torch.Tensor, cap_feats: Sequence[torch.Tensor], length: int = 0
) -> dict[str, torch.Tensor]:
    """Inputs of a graph, of the lists that Z-Image's pipeline gives its transformer.

    Args:
        x: latents [C, 1, H, W], B of them.
        t: share of data in them, [B].
        cap_feats: states of texts [L, D], B of them, of any lengths.
        length: tokens that texts are padded to, at least.
    """
    most = max(length, *map(len, cap_feats))
    counts = torch.tensor([len(text) for text in cap_feats], device=t.device)
    mask = torch.arange(most, device=t.device) < counts[:, None]
    pad = torch.nn.functional.pad
    return {
        "hidden_states": torch.cat([latents.transpose(0, 1) for latents in x]),
        "encoder_hidden_states": torch.stack(
            [pad(text, (0, 0, 0, most - len(text))) for text in cap_feats]
        ),
        "timestep": t,
        "encoder_attention_mask": mask.long(),
    }


class Listed(torch.nn.Module):
    """Calls a network over batches as the pipeline of diffusers calls its transformer.

    Args:
        network: a `BatchedZImage`, or one that takes its place.

    Attributes:
        length: tokens that texts are padded to, so that all calls are alike.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: Any = network
        self.config: Any = network.config
        self.in_channels = network.config.in_channels
        self.length = 0

    @property
    def device(self) -> torch.device:
        """The network's."""
        return torch.device(self.network.device)

    @property
    def dtype(self) -> torch.dtype:
        """The network's."""
        found: torch.dtype = self.network.dtype
        return found

    def forward(
        self, x: list[torch.Tensor], t: torch.Tensor, cap_feats: list[torch.Tensor], **_: Any
    ) -> tuple[list[torch.Tensor]]:
        """Predictions [C, 1, H, W]; see `batch_of_lists`."""
        output = self.network(**batch_of_lists(x, t, cap_feats, self.length))[0]
        return (list(output.unsqueeze(2)),)
