"""Position embeddings as torch operations on sizes, so that one graph has them for every size.

diffusers computes these tables in Python from sizes that it takes for constants. Here a size may be
a symbol of a trace.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from fp4dit_onnx.families import Interface

__all__ = ["arguments_of", "cropped_table", "grid_rotary", "sincos_table"]

THETA = 10000.0
Size = Any
"""An int, or a symbol of a trace (`torch.SymInt`), which torch's types do not take for one."""


def arguments_of(interface: Interface, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a module's forward, of named inputs; rotary tables are of their sizes."""
    arguments = interface.keywords(inputs)
    for rotary in interface.rotary:
        height, width = (size // rotary.patch for size in inputs["hidden_states"].shape[-2:])
        arguments[rotary.argument] = grid_rotary(height, width, rotary.head_dim, rotary.base)
    return arguments


def _frequencies(count: int, dtype: torch.dtype) -> torch.Tensor:
    """``THETA ** (-i / count)`` for i below `count`, [count]."""
    return 1 / THETA ** (torch.arange(count, dtype=dtype) / count)


def _number(value: Size) -> torch.Tensor:
    return torch.scalar_tensor(value, dtype=torch.float64)


def _over_grid(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """[H, C] by row and [W, C] by column -> [H W, 2 C]; the columns' channels come first."""
    h, w, c = rows.shape[0], columns.shape[0], rows.shape[1]
    by_column = columns.unsqueeze(0).expand(h, w, c)
    by_row = rows.unsqueeze(1).expand(h, w, c)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1)


def sincos_table(
    height: Size, width: Size, channels: int, base_size: int, scale: float
) -> torch.Tensor:
    """Sines and cosines of a grid of patches, float32 [1, H W, C], as `PatchEmbed` of diffusers.

    Args:
        height: H, in patches.
        width: W, in patches.
        channels: C, a multiple of 4.
        base_size: side of the grid that the model was trained on; other grids are stretched to it.
        scale: `interpolation_scale` of the configuration.
    """
    omega = _frequencies(channels // 4, torch.float64)

    def axis(size: Size) -> torch.Tensor:
        stretch = (_number(size) / base_size).float()
        at = torch.arange(size, dtype=torch.float32) / stretch / scale
        angle = at.double().unsqueeze(1) * omega  # [size, C / 4]
        # A shifted sine is the cosine: ONNX Runtime before 1.29 has none in float64.
        return torch.cat([angle.sin(), (angle + math.pi / 2).sin()], dim=1).float()

    return _over_grid(axis(height), axis(width)).unsqueeze(0)


def cropped_table(table: torch.Tensor, side: int, height: Size, width: Size) -> torch.Tensor:
    """The middle [1, H W, C] of a stored table [1, side * side, C]."""
    # (side - size) // 2 of positive terms: torch simplifies the difference to a negative one, and
    # ONNX divides towards zero.
    top, left = (side // 2 - (size + 1 - side % 2) // 2 for size in (height, width))
    grid = table.unflatten(1, (side, side))  # type: ignore[no-untyped-call]
    rows = grid.narrow(1, top, height)
    part: torch.Tensor = rows.narrow(2, left, width)
    return part.flatten(1, 2)


def grid_rotary(
    height: Size, width: Size, head_dim: int, base_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of Hunyuan-DiT's rotary embedding, float32 [H W, head_dim] each.

    The grid is fitted into a square of `base_size` and centred there (Hunyuan-DiT's
    `get_resize_crop_region_for_grid` and `get_2d_rotary_pos_embed` in diffusers).

    Args:
        height: H, in patches.
        width: W, in patches.
        head_dim: a multiple of 4.
        base_size: side of the square.
    """
    omega = _frequencies(head_dim // 4, torch.float32)
    h, w = _number(height), _number(width)
    base = torch.tensor(float(base_size), dtype=torch.float64)
    tall = h > w
    fitted = (
        torch.where(tall, base, torch.round(base / w * h)),
        torch.where(tall, torch.round(base / h * w), base),
    )

    def axis(size: Size, length: torch.Tensor) -> torch.Tensor:
        begin, count = torch.round((base - length) / 2), _number(size)
        end = (begin + length) * (count - 1) / count
        at = _spaced(begin, end, size)
        angle = at.unsqueeze(1) * omega
        return angle.repeat_interleave(2, dim=1)  # [size, head_dim / 2]

    angle = _over_grid(axis(height, fitted[0]), axis(width, fitted[1]))
    return angle.cos(), angle.sin()


def _spaced(begin: torch.Tensor, end: torch.Tensor, count: Size) -> torch.Tensor:
    """`torch.linspace` in float32 for a `count` that may be a symbol; counts from both ends."""
    first, last = begin.float(), end.float()
    i = torch.arange(count, dtype=torch.float32)
    most = _number(count).float() - 1
    step = (last - first) / most.clamp(min=1)
    return torch.where(i < (most + 1) / 2 - 0.25, first + step * i, last - step * (most - i))
