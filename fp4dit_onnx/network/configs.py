"""Settings of networks against what the classes of diffusers and transformers declare."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import diffusers
import torch
import transformers

from fp4dit_onnx.bundle.names import CONFIG
from fp4dit_onnx.checkpoint.checkpoint import Checkpoint, Component
from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.families import Family
from fp4dit_onnx.families.table import largest_side
from fp4dit_onnx.families.text_encoders import TEXT_ENCODERS
from fp4dit_onnx.files.decoding import expected, shown
from fp4dit_onnx.files.reading import CHECKPOINT
from fp4dit_onnx.files.settings import LARGEST, read_settings
from fp4dit_onnx.system.resources import available_memory

__all__ = ["check_networks", "check_settings"]

_NAMES = {**vars(typing), "torch": torch}
"""What annotations refer to; they are kept as text."""
_NUMBER_BYTES = 8
_COPIES = 3
"""Of a table of positions while it is computed: angles, sines and cosines, both together."""


def check_networks(checkpoint: Checkpoint, family: Family) -> None:
    """Compare the settings of all networks of a pipeline with their classes, before one is built.

    Raises:
        CheckpointError: an entry of another type than the class declares, out of range, or of more
            memory than there is; names file, entry, what was found and expected.
    """
    for name, part in checkpoint.components.items():
        if name == "transformer":
            _check(part, getattr(diffusers, family.transformer, None))
            config = checkpoint.transformer_config
            family.interface(config).check(config)
            _check_positions(part, config)
        elif part.class_name in TEXT_ENCODERS:
            _check(part, getattr(transformers, part.class_name).config_class)
        elif name == "vae":
            _check(part, getattr(diffusers, part.class_name, None))


def _check(part: Component, cls: Any) -> None:
    path = part.folder / CONFIG
    config = read_settings(path, f"the settings of {part.class_name}", CHECKPOINT)
    if cls is not None:
        check_settings(path, cls, config, max(len(part.tensors), 1))


def check_settings(path: Path, cls: Any, config: Mapping[str, Any], most_layers: int) -> None:
    """Compare settings with the parameters of the class that they are of; others are not looked at.

    Args:
        path: of the settings, for messages.
        cls: a class of diffusers, or of transformers' settings.
        config: the settings.
        most_layers: tensors that are stored: no network has more layers than that.

    Raises:
        CheckpointError: see `check_networks`.
    """
    parameters = inspect.signature(cls.__init__).parameters
    kinds = get_type_hints(cls.__init__, localns=_NAMES)
    for key, value in config.items():
        if key not in parameters or key.startswith("_"):
            continue
        kind, default = kinds.get(key, Any), parameters[key].default
        if value != default and not _accepts(kind, value):
            raise _fault(path, key, value, expected(kind))
        if type(value) is int and not key.endswith("_id"):
            most = most_layers if "layers" in key else LARGEST
            least = 1 if key.endswith(("layers", "heads", "_dim", "channels", "_size")) else 0
            if key.endswith("layers") or (type(default) is int and default < 1):
                least = min(0, default) if type(default) is int else 0
            if not least <= value <= most:
                raise _fault(path, key, value, f"a whole number from {least} to {most}")


def _accepts(kind: Any, value: Any) -> bool:
    """Whether a JSON value is of a declared type; True for types that JSON has not."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_accepts(one, value) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (tuple, list):
        same = len(arguments) == 1 or arguments[-1:] == (...,)
        return isinstance(value, list) and (
            all(_accepts(arguments[0], one) for one in value)
            if same or not arguments
            else len(value) == len(arguments)
            and all(_accepts(one, item) for one, item in zip(arguments, value, strict=True))
        )
    if origin is dict or kind is dict:
        return isinstance(value, dict)
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, str, bool, type(None)):
        return type(value) is kind
    return True


def _fault(path: Path, key: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {key} is {shown(value)}, expected {wanted}; {CHECKPOINT.cure}"
    )


def _check_positions(part: Component, config: Mapping[str, Any]) -> None:
    """A table of positions is computed while a network is built: it must fit into memory."""
    latents = max(config.get("sample_size") or 1, largest_side(config) or 1)
    side = latents // (config.get("patch_size") or 1)
    width = (config.get("num_attention_heads") or 1) * (config.get("attention_head_dim") or 1)
    needed, there = side * side * width * _NUMBER_BYTES * _COPIES, available_memory()
    if there is not None and needed > there:
        raise CheckpointError(
            f"{part.folder / CONFIG}: positions of {side} x {side} patches take {needed} bytes, and "
            f"{there} are free: expected a smaller sample_size or pos_embed_max_size; "
            f"{CHECKPOINT.cure}"
        )
