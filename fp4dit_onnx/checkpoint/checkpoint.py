"""A diffusers pipeline folder, read without torch and without loading weights."""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fp4dit_onnx.bundle.names import MANIFEST, MODEL_INDEX
from fp4dit_onnx.checkpoint.assembling import SOURCES
from fp4dit_onnx.checkpoint.low_rank import fused
from fp4dit_onnx.checkpoint.single_file import read_single_file
from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.checkpoint.tensor_names import check_adapters, unwrapped
from fp4dit_onnx.checkpoint.weight_files import WeightFiles, pipeline_variant, read_weights
from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.families.request import has_component
from fp4dit_onnx.families.table import current_class, renamed_classes
from fp4dit_onnx.files import CHECKPOINT, read_json
from fp4dit_onnx.files.settings import read_settings, transformer_settings, vae_settings
from fp4dit_onnx.tokenizer_files import check_tokenizer

__all__ = [
    "Checkpoint",
    "Component",
    "TensorInfo",
    "demo_folder",
    "open_checkpoint",
    "scheduler_settings",
]

_SCHEDULER = "scheduler_config.json"


@dataclass(frozen=True)
class Component:
    """One subfolder of a pipeline.

    Attributes:
        name: the subfolder, such as ``text_encoder``.
        folder: its path.
        class_name: the class that model_index.json names for it.
        tensors: stored tensors by name, without wrappers' parts; empty for tokenizers and
            schedulers.
        notes: what a reader should know of how its weights are read.
    """

    name: str
    folder: Path
    class_name: str
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
        transformer_config: the transformer's config.json.
        components: every component that an export needs, by name.
        variant: infix of the weight files (`variant=` of diffusers' from_pretrained), such as
            ``fp16``; None for plain names.
        absent: names of those that model_index.json has as null.
        lora: files whose products are added to the tensors, each as ``FILE[:SCALE]``.
    """

    folder: Path
    pipeline_class: str
    transformer_config: Mapping[str, Any]
    components: Mapping[str, Component]
    variant: str | None
    absent: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()

    @property
    def transformer_class(self) -> str:
        """The class of the transformer in today's diffusers."""
        return self.components["transformer"].class_name

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The transformer's stored tensors, by torch parameter name."""
        return self.components["transformer"].tensors

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how the weights are read, a line each."""
        chosen = f"the weights are of variant {self.variant}, as not all have plain files"
        said = (chosen,) if self.variant else ()
        return (*said, *(note for part in self.components.values() for note in part.notes))


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
    folder: Path | str | None = None,
    *,
    only: Collection[str] | None = None,
    lora: Sequence[str] = (),
) -> Checkpoint:
    """Read and check a diffusers pipeline folder; None is the embedded demo pipeline.

    Args:
        folder: of the pipeline.
        only: names of the components to look at; the others may be absent. None for all.
        lora: files that are added to the weights, each as ``FILE[:SCALE]``; see `low_rank.fused`.

    Raises:
        CheckpointError: no pipeline, or an incomplete or damaged one; the message says what was
            found, what was expected and what to do.
    """
    root = demo_folder() if folder is None else Path(folder)
    _check_is_pipeline(root)
    index = read_json(root / MODEL_INDEX, "the pipeline's list of components", CHECKPOINT)
    pipeline_class = index.get("_class_name")
    if not isinstance(pipeline_class, str):
        raise CheckpointError(
            f"{root / MODEL_INDEX} names no pipeline class ('_class_name'): "
            "expected the index of a diffusers pipeline; download it again"
        )
    classes = _component_classes(index)
    if "transformer" not in classes:
        listed = ", ".join(sorted(classes)) or "nothing"
        raise CheckpointError(
            f"{root} ({pipeline_class}) has no transformer (it lists {listed}): "
            "expected a diffusion transformer's pipeline, such as PixArt"
        )
    wanted = {n: pair for n, pair in classes.items() if only is None or n in only}
    for name, (_, class_name) in wanted.items():
        if not (root / name).is_dir():
            raise CheckpointError(
                f"{root} has no folder {name!r}: {MODEL_INDEX} names it ({class_name}); "
                "download the pipeline again, all folders included"
            )
    sources = _weight_sources(root)
    places = {name: sources.get(name, root / name) for name in wanted if _has_weights(name)}
    weighty = {place: wanted[name][0] for name, place in places.items() if place.is_dir()}
    variant = pipeline_variant(weighty)
    opened = Checkpoint(
        folder=root,
        pipeline_class=pipeline_class,
        transformer_config=_transformer_config(root / "transformer", classes["transformer"][1]),
        components={
            name: _component(root / name, library, class_name, variant, places.get(name))
            for name, (library, class_name) in wanted.items()
        },
        variant=variant,
        absent=tuple(n for n in index if _is_needed(n) and not has_component(index, n)),
        lora=tuple(lora),
    )
    for text in lora:
        opened = _with_lora(opened, text, classes.keys() - wanted.keys())
    return opened


def _with_lora(checkpoint: Checkpoint, text: str, unread: Collection[str]) -> Checkpoint:
    parts = checkpoint.components
    tensors, note = fused({n: p.tensors for n, p in parts.items() if p.tensors}, text, unread)
    changed = {n: replace(p, tensors=tensors.get(n, p.tensors)) for n, p in parts.items()}
    transformer = changed["transformer"]
    changed["transformer"] = replace(transformer, notes=(*transformer.notes, note))
    return replace(checkpoint, components=changed)


def _check_is_pipeline(root: Path) -> None:
    expected = "expected a diffusers pipeline folder"
    if not root.exists():
        hint = "check the path"
        if not root.is_absolute() and len(root.parts) == 2:
            hint += f", or, if it is a model's name, download it first (hf download {root})"
        raise CheckpointError(f"{root} not found: {expected}; {hint}")
    if not root.is_dir():
        raise CheckpointError(f"{root} is a file: {expected}; give the folder with {MODEL_INDEX}")
    if (root / MANIFEST).exists():
        raise CheckpointError(
            f"{root} is a quantized bundle: {expected}; give the folder it was exported from"
        )
    if (root / MODEL_INDEX).exists():
        return
    if (root / "config.json").is_file():
        parent = root.resolve().parent
        owner = f"give {parent}" if (parent / MODEL_INDEX).is_file() else "give its parent folder"
        raise CheckpointError(f"{root} is one component of a pipeline: {expected}; {owner}")
    held = ", ".join(sorted(p.name for p in root.iterdir())[:4]) or "nothing"
    raise CheckpointError(f"{root} has no {MODEL_INDEX} (it holds {held}): {expected}")


def _component_classes(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Library and class by name of the components that an export reads."""
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if isinstance(value, list)
        and len(value) == 2
        and all(isinstance(part, str) for part in value)
        and _is_needed(name)
    }


def _is_needed(name: str) -> bool:
    return _has_weights(name) or name.startswith(("tokenizer", "scheduler"))


def _has_weights(name: str) -> bool:
    return name.startswith(("transformer", "text_encoder", "vae"))


def _weight_sources(root: Path) -> dict[str, Path]:
    """Where weights lie that are not in the pipeline's own folders; see `assembling`."""
    if not (root / SOURCES).is_file():
        return {}
    found = read_json(root / SOURCES, "where weights lie", CHECKPOINT)
    return {name: Path(path) for name, path in found.items()}


def _component(
    folder: Path, library: str, class_name: str, variant: str | None, weights: Path | None
) -> Component:
    name = folder.name
    if name.startswith("tokenizer"):
        check_tokenizer(folder, class_name)
        return Component(name, folder, class_name)
    if name.startswith("scheduler"):
        part = Component(name, folder, class_name)
        own, used = _stored_scheduler(part), scheduler_settings(part)
        note = (
            f"{name}: {MODEL_INDEX} names {class_name}, which is used, as diffusers does, and not "
            f"{own.get('_class_name')} of {_SCHEDULER}"
        )
        return part if own == used else replace(part, notes=(note,))
    path = folder / "config.json"
    if name == "vae":
        config = vae_settings(path, CHECKPOINT)
    else:
        config = read_settings(path, f"the settings of {class_name}", CHECKPOINT)
    _check_no_other_source(folder, library, config)
    current = current_class(class_name, config)
    if weights is not None and weights.is_file():
        files = WeightFiles(read_single_file(weights, current), None)
    else:
        files = read_weights(weights or folder, library, variant)
    check_adapters(files.tensors)
    tensors, notes = unwrapped(name, files.tensors)
    said = tuple(f"{name}: {note}" for note in files.notes)
    return Component(name, folder, current, tensors, (*said, *notes))


def scheduler_settings(part: Component) -> dict[str, Any]:
    """Settings of a pipeline's scheduler as diffusers reads them.

    The class is the one that model_index.json names. Another one in the scheduler's own file wrote
    its defaults there too, which are none of the class that is used.

    Raises:
        CheckpointError: the file is damaged.
    """
    stored = _stored_scheduler(part)
    if stored.get("_class_name") == part.class_name:
        return stored
    defaults = stored.get("_use_default_values")
    left = {"_use_default_values", *(defaults if isinstance(defaults, list) else ())}
    kept = {key: value for key, value in stored.items() if key not in left}
    return {**kept, "_class_name": part.class_name}


def _stored_scheduler(part: Component) -> dict[str, Any]:
    return read_json(
        part.folder / _SCHEDULER, "the scheduler's settings", CHECKPOINT, infinite=True
    )


def _check_no_other_source(folder: Path, library: str, config: Mapping[str, Any]) -> None:
    """Refuse weights that transformers would find by other ways than by their names."""
    if library != "transformers":
        return
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        raise CheckpointError(
            f"{adapter} makes an adapter (LoRA) part of the encoder: expected the weights alone; "
            "merge it (merge_and_unload of peft) and save the pipeline again"
        )
    if config.get("transformers_weights") is not None:
        raise CheckpointError(
            f"{folder / 'config.json'} names a file of weights itself ('transformers_weights'): "
            "expected the usual names; load the encoder in transformers and save it again"
        )


def _transformer_config(folder: Path, class_name: str) -> dict[str, Any]:
    path = folder / "config.json"
    config = transformer_settings(path, CHECKPOINT)
    expected, own = current_class(class_name, config), config.get("_class_name")
    found = current_class(own, config) if isinstance(own, str) else own
    if found != expected and expected not in renamed_classes(str(found)).values():
        raise CheckpointError(
            f"{path} is of class {found}: expected {expected}, as {MODEL_INDEX} says; "
            "the folder mixes two pipelines: download it again"
        )
    return config
