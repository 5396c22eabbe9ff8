"""Slots of a graph: pairs of matrices that adapters of ONNX Runtime replace at run time.

They are initializers of zeros that are inputs too, which a run may give other values.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from fp4dit_onnx.bundle.probe import load_model
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.spec.low_rank import SLOT, LowRank

__all__ = ["open_slots", "slots_of"]

Shapes = dict[str, tuple[int, ...]]


def _slot_tensors(tensors: Iterable[onnx.TensorProto]) -> list[onnx.TensorProto]:
    ends = tuple(SLOT + role for role in LowRank.roles)
    return [tensor for tensor in tensors if tensor.name.endswith(ends)]


def open_slots(model: onnx.ModelProto) -> None:
    """Let runs of `model` give the matrices of its slots other values."""
    for tensor in _slot_tensors(model.graph.initializer):
        shape = list(tensor.dims)
        info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape)
        model.graph.input.append(info)


def slots_of(path: Path) -> Shapes:
    """Shapes of the slots' matrices in a bundle's transformer, by name.

    Raises:
        BundleError: the file is unreadable.
        UsageError: it has no slots.
    """
    model = load_model(path)
    found = {t.name: tuple(t.dims) for t in _slot_tensors(model.graph.initializer)}
    if not found:
        raise UsageError(
            f"{path} has no slots for a LoRA: expected a bundle of  export --lora-slots 16; a LoRA can "
            "also be added to the weights by  export --lora"
        )
    return found
