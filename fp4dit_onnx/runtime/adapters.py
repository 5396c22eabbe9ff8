"""Adapters of ONNX Runtime: LoRAs that a pipeline adds at run time, in the slots of its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.checkpoint.low_rank import named_file
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.providers import runtime_package
from fp4dit_onnx.runtime.session import Session
from fp4dit_onnx.spec.low_rank import SLOT, LowRank, slot_name

__all__ = [
    "ADAPTER_SUFFIX",
    "Shapes",
    "WithAdapters",
    "filled",
    "in_half",
    "matrices_of",
    "read_adapter",
    "write_adapter",
]

Array = npt.NDArray[Any]
Shapes = Mapping[str, Sequence[int]]
"""Of the slots' matrices, float16 [K, rank] and [rank, N], by name."""
ADAPTER_SUFFIX = ".onnx_adapter"


def _onnxruntime() -> Any:
    package = runtime_package()
    if not hasattr(package, "AdapterFormat"):
        raise UsageError(
            f"onnxruntime {package.__version__} has no adapters: expected 1.20 or newer; upgrade it"
        )
    return package


def write_adapter(tensors: Mapping[str, Array], path: Path) -> None:
    """Write an adapter of float16 matrices by name."""
    ort = _onnxruntime()
    file = ort.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    values = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    file.set_parameters(
        {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()}
    )
    file.export_adapter(str(path))


def in_half(matrices: Mapping[str, Array], whose: str) -> dict[str, Array]:
    """Matrices as adapters here have them.

    Args:
        matrices: float32 by name.
        whose: they are, for messages.

    Raises:
        UsageError: numbers that float16 does not hold.
    """
    with np.errstate(over="ignore"):
        halves = {name: value.astype(np.float16) for name, value in matrices.items()}
    for name, value in halves.items():
        if not np.isfinite(value).all():
            raise UsageError(
                f"{whose}: {name} has numbers beyond float16's, which adapters are stored in: expected "
                "65504 at most, of a smaller scale or alpha"
            )
    return halves


def read_adapter(path: Path) -> dict[str, Array]:
    """The matrices of an adapter by name.

    Raises:
        UsageError: the file is none, or damaged.
    """
    try:
        file = _onnxruntime().AdapterFormat.read_adapter(str(path))
        # The values lie in the memory of `file`.
        return {name: value.numpy().copy() for name, value in file.get_parameters().items()}
    except RuntimeError as error:
        raise UsageError(
            f"{path} is not an adapter of ONNX Runtime, or damaged: expected a file made by  "
            "fp4dit-onnx lora convert; make it again"
        ) from error


def filled(layer: str, down: Array, up: Array, rank: int) -> dict[str, Array]:
    """The matrices of a layer's slot by name, of a LoRA of at most its rank; the rest is zeros.

    Args:
        layer: its name.
        down: [K, r].
        up: [r, N].
        rank: of the slot.
    """
    rest = (0, rank - len(up))
    return {
        slot_name(layer, "down"): np.pad(down, ((0, 0), rest)),
        slot_name(layer, "up"): np.pad(up, (rest, (0, 0))),
    }


class WithAdapters:
    """A pipeline whose transformer may have slots."""

    transformer: Session
    _adapters: Mapping[str, Array]

    def use_adapters(self, *adapters: str) -> None:
        """Add LoRAs to the transformer from now on, ``FILE`` or ``FILE:SCALE`` of ``lora convert``.

        They replace those added before; no session is loaded again.

        Raises:
            UsageError: see `matrices_of`.
        """
        held: list[Any] = getattr(self.transformer, "get_overridable_initializers", list)()
        self._adapters = matrices_of(adapters, {item.name: item.shape for item in held})


def matrices_of(texts: Sequence[str], slots: Shapes) -> dict[str, Array]:
    """What a session is given besides its inputs to add adapters.

    Several are added as one: their ranks lie side by side in the slots. ONNX Runtime's own adapters
    would not do: runs with an I/O binding ignore them.

    Args:
        texts: each ``FILE`` or ``FILE:SCALE``.
        slots: of the session.

    Returns:
        Float16 matrices by name, in the shapes of the slots; those that no adapter fills are left out.

    Raises:
        UsageError: no such file, or none that fits the slots; the ranks together exceed theirs.
    """
    if texts and not slots:
        raise UsageError(
            f"adapter {texts[0]}: this bundle has no slots: expected one of  export --lora-slots 16"
        )
    found: dict[str, list[tuple[Array, Array]]] = {}
    for text in texts:
        path, scale = named_file(text, f"adapter {text}", f"a file ending in {ADAPTER_SUFFIX}")
        tensors = read_adapter(path)
        _check(path, tensors, slots)
        for name in tensors:
            layer, _, role = name.rpartition(SLOT)
            if role == "down":
                down, up = (
                    tensors[slot_name(layer, one)].astype(np.float32) for one in LowRank.roles
                )
                used = down.any(axis=0) & up.any(axis=1)
                found.setdefault(layer, []).append((down[:, used], scale * up[used]))
    merged: dict[str, Array] = {}
    for layer, pairs in found.items():
        down, up = np.hstack([d for d, _ in pairs]), np.vstack([u for _, u in pairs])
        rank = slots[slot_name(layer, "up")][0]
        if len(up) > rank:
            raise UsageError(
                f"adapters {', '.join(texts)} are of rank {len(up)} together at layer {layer}: expected "
                f"{rank} at most, the rank of the bundle's slots; use fewer, or export more slots"
            )
        merged |= filled(layer, down, up, rank)
    return in_half(merged, f"adapters {', '.join(texts)}")


def _check(path: Path, tensors: Mapping[str, Array], slots: Shapes) -> None:
    strangers = [name for name in tensors if name not in slots]
    if strangers or not tensors:
        raise UsageError(
            f"adapter {path} has {strangers[0] if strangers else 'nothing'}, and this bundle has no "
            "such slot: expected an adapter of this model; make it with  fp4dit-onnx lora convert"
        )
    layers = {name.rpartition(SLOT)[0]: None for name in tensors}
    names = [slot_name(layer, role) for layer in layers for role in LowRank.roles]
    lacking = [name for name in names if name not in tensors]
    if lacking:
        raise UsageError(
            f"adapter {path} lacks {lacking[0]}: expected both matrices of each layer; make it again "
            "with  fp4dit-onnx lora convert"
        )
    for name, value in tensors.items():
        wanted = tuple(slots[name])
        if value.shape != wanted or value.dtype != np.float16:
            raise UsageError(
                f"adapter {path}: {name} is {value.dtype} {list(value.shape)}: expected float16 "
                f"{list(wanted)}, the slots' rank and the layer's size in this bundle; make it with  "
                "fp4dit-onnx lora convert --bundle"
            )
