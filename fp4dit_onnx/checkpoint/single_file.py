"""A transformer in one file: its tensors under the names that diffusers has for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fp4dit_onnx.checkpoint.gguf_files import read_gguf
from fp4dit_onnx.checkpoint.layouts import LAYOUTS, Layout
from fp4dit_onnx.checkpoint.rows import Rows
from fp4dit_onnx.checkpoint.tensor_files import TensorInfo, read_header
from fp4dit_onnx.errors import CheckpointError

__all__ = ["is_single_file", "layout_of", "read_names", "read_single_file", "unknown_layout"]

READERS = {".safetensors": read_header, ".sft": read_header, ".gguf": read_gguf}
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PREFIXES = (
    "model.diffusion_model.",
    "model.model.",
    "net.",
    "diffusion_model.",
    "transformer.",
    "model.",
)
"""What names of a transformer begin with in files that hold more than it, or did once."""
SHOWN = 3


def is_single_file(path: Path) -> bool:
    """Whether a path is that of a file that may hold a whole transformer."""
    return path.is_file() and path.suffix.lower() in (*READERS, *PICKLES)


def read_names(path: Path) -> dict[str, TensorInfo]:
    """The transformer's tensors in a file, by the names there without what all begin with.

    Raises:
        CheckpointError: a file of PyTorch's own format, a damaged one, or one without tensors.
    """
    if path.suffix.lower() in PICKLES:
        target = path.with_suffix(".safetensors").name
        raise CheckpointError(
            f"{path} is in PyTorch's own format, which can run any code when it is read: expected "
            f'safetensors or GGUF; convert it where you trust it:  python -c "import torch, '
            f"safetensors.torch as s; d = torch.load('{path.name}', 'cpu', weights_only=True); "
            f"d = d.get('state_dict', d); s.save_file({{k: v.clone() for k, v in d.items()}}, "
            f"'{target}')\""
        )
    tensors = READERS[path.suffix.lower()](path)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors: expected a transformer; download it again"
        )
    for prefix in PREFIXES:
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if inside:
            return inside
    return tensors


def layout_of(names: Mapping[str, TensorInfo]) -> Layout | None:
    """The original layout that a file is of; None for diffusers' names, if it is of any."""
    return next((layout for layout in LAYOUTS if layout.fits(names)), None)


def read_single_file(path: Path, transformer: str) -> dict[str, TensorInfo]:
    """The tensors of a transformer of diffusers' class, by its names; those of none keep theirs.

    Raises:
        CheckpointError: as `read_names`; a layout of another class; or the tensors are not all there.
    """
    names = read_names(path)
    layout = layout_of(names)
    if layout is None:
        return names
    if layout.transformer != transformer:
        raise CheckpointError(
            f"{path} holds a {layout.transformer}, by its tensor {layout.known_by[0]!r}: expected a "
            f"{transformer}, as the configuration says; give the configuration of this file's model"
        )
    try:
        made = layout.converted({name: Rows(info) for name, info in names.items()})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return {name: rows.info for name, rows in made.items()}


def unknown_layout(path: Path, names: Mapping[str, TensorInfo]) -> CheckpointError:
    """What is said of a file whose names fit no family."""
    shown = ", ".join(map(repr, list(names)[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
    known = ", ".join(layout.transformer for layout in LAYOUTS)
    return CheckpointError(
        f"{path}: none of its {len(names)} tensors is known by name ({shown}): expected a whole "
        f"transformer in the layout of its authors, ComfyUI or diffusers: {known}; the file is of "
        "another model, or of a part such as a LoRA or a VAE"
    )
