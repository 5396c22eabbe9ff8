"""Latents in the layouts of the transformer and of the VAE's decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Latents"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Latents:
    """What a family makes of latents [B, C, H, W].

    Attributes:
        packing: side of the squares of latents that the transformer takes as one token, [B, tokens,
            channels * packing^2]; 1 if it takes them as they are.
        scaling: what the VAE multiplied its latents by, where its config does not say: that of
            diffusers' AutoencoderKL.
        shift: what it subtracted before, likewise.
        squares: whether pipelines of diffusers begin with packed tokens in rows and columns, [B,
            channels * packing^2, H / packing, W / packing].
    """

    packing: int = 1
    scaling: float = 0.18215
    shift: float = 0.0
    squares: bool = False

    def channels(self, in_channels: int) -> int:
        """C, of what the transformer's config has as in_channels."""
        return in_channels // self.packing**2

    def pack(self, latents: FloatArray) -> FloatArray:
        """As the transformer takes them; channels come first in a token."""
        side = self.packing
        if side == 1:
            return latents
        batch, channels, height, width = latents.shape
        squares = latents.reshape(batch, channels, height // side, side, width // side, side)
        tokens = squares.transpose(0, 2, 4, 1, 3, 5)  # [B, rows, columns, C, side, side]
        return tokens.reshape(batch, -1, channels * side * side)

    def given(self, latents: FloatArray) -> FloatArray:
        """As a pipeline of diffusers begins with them."""
        batch, _, height, width = latents.shape
        tokens, side = self.pack(latents), self.packing
        if not self.squares:
            return tokens
        return tokens.transpose(0, 2, 1).reshape(batch, -1, height // side, width // side)

    def unpack(self, tokens: FloatArray, shape: tuple[int, ...]) -> FloatArray:
        """What `pack` made of latents of `shape` [B, C, H, W]."""
        side = self.packing
        if side == 1:
            return tokens
        batch, channels, height, width = shape
        grid = tokens.reshape(batch, height // side, width // side, channels, side, side)
        return grid.transpose(0, 3, 1, 4, 2, 5).reshape(shape)

    def prediction(self, output: FloatArray, shape: tuple[int, ...]) -> FloatArray:
        """What the sampler reads of a transformer's output for latents of `shape`: no variance."""
        return self.unpack(output, shape)[:, : shape[1]]

    def for_decoder(self, latents: Any, vae_config: Mapping[str, Any]) -> Any:
        """What a VAE's decoder takes, of latents as they are denoised.

        Args:
            latents: float32 array of numpy or tensor of torch, of any shape.
            vae_config: diffusers' config of the VAE; it may have no scaling_factor or shift_factor,
                or null.
        """
        scaling, shift = self._scaled(vae_config)
        return latents / scaling + shift

    def from_encoder(self, latents: Any, vae_config: Mapping[str, Any]) -> Any:
        """Latents without noise, of what a VAE's encoder gives; arguments as `for_decoder` has them."""
        scaling, shift = self._scaled(vae_config)
        return (latents - shift) * scaling

    def _scaled(self, vae_config: Mapping[str, Any]) -> tuple[float, float]:
        scaling = vae_config.get("scaling_factor") or self.scaling
        shift = vae_config.get("shift_factor") or self.shift
        return float(scaling), float(shift)
