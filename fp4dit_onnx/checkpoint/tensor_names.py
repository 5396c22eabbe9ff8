"""What names of stored tensors tell before the network is known: wrappers of torch, and adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.errors import CheckpointError

__all__ = ["check_adapters", "unwrapped"]

WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "torch's FSDP",
    "_checkpoint_wrapped_module.": "torch's activation checkpointing",
}
"""What torch puts into the names of modules that it wraps, wherever they are; diffusers and
transformers know none of them, and would fill the network with random weights."""
PARALLEL = "module."
"""What DataParallel and DistributedDataParallel put before all names."""
ADAPTER = re.compile(
    r"(?:^|[._])(?:(?:ada|vb)?lora|dora|lokr|loha|hada|b?oft|vera|ia3|hra|fourierft|base_layer|"
    r"modules_to_save)(?:[._]|$)",
    re.IGNORECASE,
)
"""In the names of what peft, diffusers and kohya train beside a network's own weights."""


def unwrapped(
    what: str, tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, TensorInfo], list[str]]:
    """Tensors by the names that they have without wrappers of torch, and notes on what was taken off.

    Args:
        what: the component, for messages.
        tensors: by stored name.

    Raises:
        CheckpointError: two tensors would have one name.
    """
    found = {name: name for name in tensors}
    notes = []
    parts = {part: of for part, of in WRAPPERS.items() if any(part in name for name in tensors)}
    for part, of in parts.items():
        count = sum(part in name for name in tensors)
        found = {name: short.replace(part, "") for name, short in found.items()}
        notes.append(f"{what}: {part!r} of {of} is removed from the names of {count} tensors")
    if found and all(short.startswith(PARALLEL) for short in found.values()):
        found = {name: short.removeprefix(PARALLEL) for name, short in found.items()}
        notes.append(
            f"{what}: {PARALLEL!r} of DataParallel is removed from the names of all tensors"
        )
    taken: dict[str, str] = {}
    for name, short in found.items():
        if (first := taken.setdefault(short, name)) != name:
            raise CheckpointError(
                f"{tensors[name].file}: tensors {first!r} and {name!r} are two values of "
                f"{short!r}: save the network again from the model without its wrapper"
            )
    return {short: tensors[name] for name, short in found.items()}, notes


def check_adapters(tensors: Mapping[str, TensorInfo]) -> None:
    """Raise CheckpointError where `tensors` holds a LoRA or a like adapter, which changes the model."""
    adapters = [name for name in tensors if ADAPTER.search(name)]
    if adapters:
        raise CheckpointError(
            f"{tensors[adapters[0]].file}: tensor {adapters[0]!r} belongs to a LoRA or a like "
            f"adapter ({len(adapters)} such in all), which changes what the network computes: "
            "fuse it in diffusers (fuse_lora, then unload_lora_weights) and save the pipeline again"
        )
