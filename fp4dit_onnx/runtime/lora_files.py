"""From a LoRA file to the matrices of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from fp4dit_onnx.checkpoint.low_rank import low_rank_parts, named_file
from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.checkpoint.tensor_reading import read_float32
from fp4dit_onnx.errors import CheckpointError, UsageError
from fp4dit_onnx.runtime.adapters import Shapes, filled, in_half
from fp4dit_onnx.spec.low_rank import SLOT, slot_name

__all__ = ["adapter_of"]

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def adapter_of(file: Path, slots: Shapes) -> dict[str, npt.NDArray[Any]]:
    """The matrices of a LoRA in the shapes of a bundle's slots, float16.

    A LoRA of a lower rank has zeros in the rest of the slot. Its alphas are in the matrices.

    Raises:
        UsageError: no such file; the LoRA has a layer without a slot, or is of a higher rank.
        CheckpointError: see `low_rank.fused`.
    """
    named_file(str(file))
    weights = {
        f"{name.removesuffix(SLOT + 'up')}.weight": TensorInfo(
            (shape[1], slots[name.removesuffix("up") + "down"][0]), "F32", file, 0, 0
        )
        for name, shape in slots.items()
        if name.endswith(SLOT + "up")
    }
    try:
        parts = low_rank_parts(file, {"transformer": weights}, ENCODERS)
    except CheckpointError as error:
        if "are not in this pipeline" not in str(error):
            raise
        raise UsageError(
            f"{error}; of its linears the bundle has slots for {len(weights)} (export --lora-layers)"
        ) from error
    made: dict[str, npt.NDArray[Any]] = {}
    for (_, name), delta in parts.items():
        layer = name.removesuffix(".weight")
        own, rank = delta.down.shape[0], slots[slot_name(layer, "up")][0]
        if own > rank:
            raise UsageError(
                f"{file}: layer {layer!r} is of rank {own}: expected {rank} at most, the rank of the "
                f"bundle's slots; export the bundle with --lora-slots {own}"
            )
        down = read_float32(delta.down).reshape(own, -1).T
        up = delta.scale * read_float32(delta.up).reshape(-1, own).T
        made |= filled(layer, down, up, rank)
    if not made:
        raise UsageError(f"{file} has no layer of the transformer: expected a LoRA of it")
    return in_half(made, str(file))
