"""A diffusers pipeline folder, read without torch and without loading weights."""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.files import CHECKPOINT, LARGE, read_json
from fp4dit_onnx.tensor_files import TensorInfo, WeightFiles, read_weights

__all__ = ["Checkpoint", "Component", "TensorInfo", "demo_folder", "open_checkpoint"]

_INDEX = "model_index.json"
_MANIFEST = "quantization.json"


@dataclass(frozen=True)
class Component:
    """One subfolder of a pipeline.

    Attributes:
        name: the subfolder, such as ``text_encoder``.
        folder: its path.
        class_name: the class that model_index.json names for it.
        tensors: stored tensors by name; empty for tokenizers and schedulers.
        variant: infix of its weight files, such as ``fp16``; None for plain names.
    """

    name: str
    folder: Path
    class_name: str
    tensors: Mapping[str, TensorInfo]
    variant: str | None

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Checkpoint:
    """A complete pipeline folder with a transformer.

    Attributes:
        folder: the pipeline folder.
        pipeline_class: diffusers' class of the pipeline.
        transformer_class: diffusers' class of the transformer.
        transformer_config: the transformer's config.json.
        tensors: the transformer's stored tensors, by torch parameter name.
        components: every component that an export needs, by name.
    """

    folder: Path
    pipeline_class: str
    transformer_class: str
    transformer_config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    components: Mapping[str, Component]

    @property
    def variant(self) -> str | None:
        """Infix of the transformer's weight files (`variant=` of diffusers' from_pretrained)."""
        return self.components["transformer"].variant


def demo_folder() -> Path:
    """The pipeline folder that the package carries.

    Raises:
        CheckpointError: the package was installed without it.
    """
    folder = Path(str(importlib.resources.files("fp4dit_onnx") / "demo" / "pipeline"))
    if not folder.is_dir():
        raise CheckpointError(
            f"the embedded demo pipeline is not at {folder}: expected it as package data; "
            "reinstall fp4dit-onnx, or give a model folder"
        )
    return folder


def open_checkpoint(
    folder: Path | str | None = None, *, only: Collection[str] | None = None
) -> Checkpoint:
    """Read and check a diffusers pipeline folder; None is the embedded demo pipeline.

    Args:
        folder: of the pipeline.
        only: names of the components to look at; the others may be absent. None for all.

    Raises:
        CheckpointError: no pipeline, or an incomplete or damaged one; the message says what was
            found, what was expected and what to do.
    """
    root = demo_folder() if folder is None else Path(folder)
    _check_is_pipeline(root)
    index = read_json(root / _INDEX, "the pipeline's list of components", CHECKPOINT)
    pipeline_class = index.get("_class_name")
    if not isinstance(pipeline_class, str):
        raise CheckpointError(
            f"{root / _INDEX} names no pipeline class ('_class_name'): "
            "expected the index of a diffusers pipeline; download it again"
        )
    classes = _component_classes(index)
    if "transformer" not in classes:
        listed = ", ".join(sorted(classes)) or "nothing"
        raise CheckpointError(
            f"{root} ({pipeline_class}) has no transformer (it lists {listed}): "
            "expected a diffusion transformer's pipeline, such as PixArt"
        )
    components = {
        name: _component(root, name, cls)
        for name, cls in classes.items()
        if only is None or name in only
    }
    config = _transformer_config(root / "transformer", classes["transformer"])
    return Checkpoint(
        folder=root,
        pipeline_class=pipeline_class,
        transformer_class=classes["transformer"],
        transformer_config=config,
        tensors=components["transformer"].tensors,
        components=components,
    )


def _check_is_pipeline(root: Path) -> None:
    expected = "expected a diffusers pipeline folder"
    if not root.exists():
        hint = "check the path"
        if not root.is_absolute() and len(root.parts) == 2:
            hint += f", or, if it is a model's name, download it first (hf download {root})"
        raise CheckpointError(f"{root} not found: {expected}; {hint}")
    if not root.is_dir():
        raise CheckpointError(f"{root} is a file: {expected}; give the folder with {_INDEX}")
    if (root / _MANIFEST).exists():
        raise CheckpointError(
            f"{root} is a quantized bundle: {expected}; give the folder it was exported from"
        )
    if (root / _INDEX).exists():
        return
    if (root / "config.json").is_file():
        parent = root.resolve().parent
        owner = f"give {parent}" if (parent / _INDEX).is_file() else "give its parent folder"
        raise CheckpointError(f"{root} is one component of a pipeline: {expected}; {owner}")
    held = ", ".join(sorted(p.name for p in root.iterdir())[:4]) or "nothing"
    raise CheckpointError(f"{root} has no {_INDEX} (it holds {held}): {expected}")


def _component_classes(index: Mapping[str, Any]) -> dict[str, str]:
    """Class by name of the components that an export reads."""
    classes = {}
    for name, value in index.items():
        is_pair = isinstance(value, list) and len(value) == 2
        if is_pair and isinstance(value[1], str) and _is_needed(name):
            classes[name] = value[1]
    return classes


def _is_needed(name: str) -> bool:
    return name.startswith(("transformer", "text_encoder", "tokenizer", "vae", "scheduler"))


def _component(root: Path, name: str, class_name: str) -> Component:
    folder = root / name
    if not folder.is_dir():
        raise CheckpointError(
            f"{root} has no folder {name!r}: {_INDEX} names it ({class_name}); "
            "download the pipeline again, all folders included"
        )
    weights = WeightFiles({}, None)
    if name.startswith("tokenizer"):
        _check_tokenizer(folder)
    elif name.startswith("scheduler"):
        path = folder / "scheduler_config.json"
        read_json(path, "the scheduler's settings", CHECKPOINT, infinite=True)
    else:
        read_json(folder / "config.json", f"the settings of {class_name}", CHECKPOINT)
        weights = read_weights(folder)
    return Component(name, folder, class_name, weights.tensors, weights.variant)


def _check_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    if path.is_file():
        read_json(path, "the tokenizer in one file", CHECKPOINT, limit=LARGE)
        return
    held = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
    raise CheckpointError(
        f"{folder} has no tokenizer.json (it holds {held}): expected the tokenizer in one file; "
        f"make it with transformers: AutoTokenizer.from_pretrained({str(folder)!r})"
        f".save_pretrained({str(folder)!r})"
    )


def _transformer_config(folder: Path, expected: str) -> dict[str, Any]:
    path = folder / "config.json"
    config = read_json(path, f"the settings of {expected}", CHECKPOINT)
    found = config.get("_class_name")
    if found != expected:
        raise CheckpointError(
            f"{path} is of class {found}: expected {expected}, as {_INDEX} says; "
            "the folder mixes two pipelines: download it again"
        )
    return config
