"""Latents as tokens, a square of them each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["pack", "unpack"]

FloatArray = npt.NDArray[np.float32]


def pack(latents: FloatArray, side: int) -> FloatArray:
    """float32 [B, C, H, W] as [B, H / side * W / side, C * side^2], channels first in a token."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // side, side, width // side, side)
    tokens = squares.transpose(0, 2, 4, 1, 3, 5)  # [B, rows, columns, C, side, side]
    return tokens.reshape(batch, -1, channels * side * side)


def unpack(tokens: FloatArray, shape: tuple[int, ...], side: int) -> FloatArray:
    """What `pack` made of latents of `shape` [B, C, H, W]."""
    batch, channels, height, width = shape
    grid = tokens.reshape(batch, height // side, width // side, channels, side, side)
    return grid.transpose(0, 3, 1, 4, 2, 5).reshape(shape)
