"""Which sizes of images a transformer takes, by its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families.family import Family
from fp4dit_onnx.families.table import largest_side
from fp4dit_onnx.files import shown
from fp4dit_onnx.system.resources import available_memory

__all__ = [
    "check_fixed",
    "check_latents",
    "check_memory",
    "check_sides",
    "latents_a_token",
    "pixels_a_latent",
]

Config = Mapping[str, Any]

USUAL_FACTOR = 8
"""Pixels per latent of all families' own VAEs."""


MOST_LEVELS = 16
"""Halvings of a VAE, and one; published ones have up to six levels."""


def pixels_a_latent(vae_config: Config | None) -> int:
    """Along one side; that of all families' own VAEs where the VAE is not at hand.

    Args:
        vae_config: the VAE's config.json, or None.
    """
    if vae_config is None:
        return USUAL_FACTOR
    keys = ("block_out_channels", "encoder_block_out_channels")
    levels = next((vae_config[key] for key in keys if vae_config.get(key)), None)
    if not isinstance(levels, list) or len(levels) > MOST_LEVELS:
        raise UsageError(
            f"the VAE's {keys[0]} is {shown(levels)}: expected a list of 1 to {MOST_LEVELS} numbers "
            "of channels; download its config.json again"
        )
    return int(2 ** (len(levels) - 1))


def latents_a_token(family: Family, config: Config) -> int:
    """Latents per token of the transformer with this configuration, along one side."""
    return int(config.get("patch_size") or 1) * family.latents.packing


def check_sides(height: int, width: int, family: Family, config: Config, factor: int) -> None:
    """Refuse a size of image that a transformer cannot take.

    Args:
        height: in pixels.
        width: in pixels.
        family: of the transformer.
        config: its config.json.
        factor: pixels a latent.

    Raises:
        UsageError: a side that is no multiple of a token's, or beyond the stored positions.
    """
    multiple, most = factor * latents_a_token(family, config), largest_side(config)
    for name, size in (("height", height), ("width", width)):
        if size % multiple:
            raise UsageError(f"{name} = {size}: expected a positive multiple of {multiple}")
        if most is not None and size > most * factor:
            raise UsageError(
                f"{name} = {size}: expected at most {most * factor}, the limit of the model's "
                "position table"
            )


def check_fixed(
    declared: Sequence[Any], latents: Sequence[int], sides: Mapping[str, int], factor: int
) -> None:
    """Refuse a size that differs from the one that a transformer was exported with, if any.

    Args:
        declared: shape of its hidden_states; [B, C, H, W], as packed ones have no such axes.
        latents: H and W that are asked for.
        sides: height and width in pixels.
        factor: pixels a latent.

    Raises:
        UsageError: a side that is fixed is another one.
    """
    axes = declared[2:] if len(declared) == 4 else []
    for name, axis, wanted in zip(("height", "width"), axes, latents, strict=False):
        if isinstance(axis, int) and axis != wanted:
            raise UsageError(
                f"{name} = {sides[name]}: expected {axis * factor}, the only one that this bundle was "
                "exported for"
            )


def check_memory(height: int, width: int, vae_config: Config) -> None:
    """Refuse an image whose decoding takes more than there is.

    Args:
        height: in pixels.
        width: in pixels.
        vae_config: the VAE's config.json; its first level is computed at the image's size.

    Raises:
        UsageError: that level's features alone, float32, are more than the memory that is free.
    """
    levels = vae_config.get("block_out_channels") or vae_config["encoder_block_out_channels"]
    needed, there = height * width * int(levels[0]) * 4, available_memory()
    if there is not None and needed > there:
        raise UsageError(
            f"{width} x {height} pixels: decoding takes more than {needed} bytes, and {there} are "
            "free: ask for a smaller image"
        )


def check_latents(shape: Sequence[int], config: Config, factor: int) -> None:
    """Refuse latents that a transformer cannot take.

    Args:
        shape: of its hidden_states, [B, C, H, W]; packed ones, of three axes, are not looked at.
        config: the transformer's, with the defaults of its class.
        factor: pixels a latent, for messages.

    Raises:
        UsageError: another number of channels, or a side that is not a multiple of the patch size or
            beyond the stored positions.
    """
    if len(shape) != 4:
        return
    if shape[1] != config["in_channels"]:
        raise UsageError(
            f"hidden_states has {shape[1]} channels: expected {config['in_channels']}, [B, C, H, W]"
        )
    patch, most = int(config.get("patch_size") or 1), largest_side(config)
    for name, side in (("height", shape[2]), ("width", shape[3])):
        if side < patch or side % patch:
            raise UsageError(
                f"hidden_states has a {name} of {side} latents: expected a positive multiple of "
                f"{patch}"
            )
        if most is not None and side > most:
            raise UsageError(
                f"hidden_states has a {name} of {side} latents ({side * factor} pixels): expected at "
                f"most {most} ({most * factor} pixels), the limit of the model's position table"
            )
