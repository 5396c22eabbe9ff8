"""A pipeline folder without weights, for a transformer in one file and parts of other folders.

The folder has model_index.json, the settings of every part, tokenizers and scheduler, and says in
`SOURCES` where weights lie, which are neither copied nor read. It is opened like any other.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fp4dit_onnx.bundle.names import MODEL_INDEX
from fp4dit_onnx.checkpoint.single_file import (
    layout_of,
    read_names,
    read_single_file,
    unknown_layout,
)
from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.errors import CheckpointError, UsageError
from fp4dit_onnx.files import CHECKPOINT, json_text, read_json
from fp4dit_onnx.files.settings import transformer_settings
from fp4dit_onnx.official.models import MODELS, Part, Pipeline
from fp4dit_onnx.official.modules import meta_model
from fp4dit_onnx.system.outputs import scratch_folder

__all__ = ["SOURCES", "assembled"]

SOURCES = ".fp4dit-weights.json"
"""In an assembled folder: component -> absolute path of the file or folder with its weights."""
WEIGHTS = (
    ".safetensors",
    ".index.json",
    ".bin",
    ".gguf",
    ".ckpt",
    ".pt",
    ".pth",
    ".onnx",
    ".msgpack",
    ".h5",
)
NUMBER = re.compile(r"\.\d+\.")
_KEPT: list[tempfile.TemporaryDirectory[str]] = []
"""Folders that are removed when the process ends."""


@dataclass(frozen=True)
class _Places:
    """Where the components of a pipeline are looked for, beside the transformer.

    Attributes:
        config: a pipeline folder, for all of them.
        text_encoder: for text encoders and tokenizers.
        vae: for the VAE.
    """

    config: Path | None
    text_encoder: Path | None
    vae: Path | None

    def folder(self, name: str) -> Path | None:
        """That of a component; None where no folder has it."""
        if name.startswith(("text_encoder", "tokenizer")):
            given: tuple[Path | None, ...] = (self.text_encoder, self.config)
        elif name.startswith("vae"):
            given = (self.vae, self.config)
        else:
            given = (self.config, self.text_encoder, self.vae)
        return next(filter(None, (_inside(root, name) for root in given if root)), None)


def _inside(root: Path, name: str) -> Path | None:
    """The folder of a component in a pipeline's, or the component's own."""
    if (root / name).is_dir():
        return root / name
    if name == "tokenizer" and (root / "tokenizer_config.json").is_file():
        return root
    if name in ("text_encoder", "vae"):
        return root if (root / "config.json").is_file() else None
    beside = root.parent / name  # of text_encoder/, given by itself
    own = root.name == name.replace("tokenizer", "text_encoder")
    return beside if own and beside.is_dir() else None


@dataclass(frozen=True)
class _Base:
    """What is known of a pipeline before its parts are looked for.

    Attributes:
        index: the content of model_index.json.
        transformer: the content of the transformer's config.json.
        scheduler: the official one's settings, where no folder has others.
    """

    index: Mapping[str, Any]
    transformer: Mapping[str, Any]
    scheduler: Mapping[str, Any] | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> _Base:
        """That of a pipeline in a folder."""
        path = folder / "transformer" / "config.json"
        index = read_json(folder / MODEL_INDEX, "the pipeline's list of components", CHECKPOINT)
        return cls(index, transformer_settings(path, CHECKPOINT))

    @classmethod
    def official(cls, pipeline: Pipeline) -> _Base:
        """That of an official model."""
        listed = {name: [part.library, part.class_name] for name, part in pipeline.parts.items()}
        own, noise = pipeline.parts["transformer"], pipeline.parts["scheduler"]
        return cls(
            {"_class_name": pipeline.class_name, **pipeline.index, **listed},
            {"_class_name": own.class_name, **own.config},
            {"_class_name": noise.class_name, **noise.config},
        )


@cache
def assembled(
    file: Path,
    config: str | None = None,
    text_encoder: Path | None = None,
    vae: Path | None = None,
) -> Path:
    """A pipeline folder for a transformer in one file; it exists until the process ends.

    Args:
        file: safetensors or GGUF.
        config: pipeline folder with the configurations, or name of an official model; None for the
            official model that the file's tensors fit.
        text_encoder: folder with text encoders and tokenizers; None for those of `config`.
        vae: folder with the VAE; None for that of `config`.

    Raises:
        UsageError: a folder that is none, or a name of no official model.
        CheckpointError: the file is of an unknown layout, or damaged; or several official models fit.
    """
    for root in (text_encoder, vae):
        if root is not None and not root.is_dir():
            raise UsageError(f"{root} is no folder: expected one with parts of a pipeline")
    names = read_names(file)
    layout = layout_of(names)
    if layout is None and not _in_diffusers(names):
        raise unknown_layout(file, names)
    given = Path(config) if config is not None and Path(config).is_dir() else None
    base = _Base.of_folder(given) if given else _Base.official(_pipeline(file, names, config))
    _KEPT.append(scratch_folder())
    folder = Path(_KEPT[-1].name) / file.stem
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "config.json").write_bytes(json_text(base.transformer))
    places = _Places(given, text_encoder, vae)
    sources, index = {"transformer": str(file.absolute())}, dict(base.index)
    for name, listed in base.index.items():
        if name == "transformer" or not isinstance(listed, list) or None in listed:
            continue
        place = places.folder(name)
        if place is not None:
            copied = place.iterdir() if place.is_dir() else ()
            (folder / name).mkdir()
            for path in copied:
                if path.is_file() and not path.name.endswith(WEIGHTS):
                    shutil.copyfile(path, folder / name / path.name)
            sources[name] = str(place.absolute())
        elif name == "scheduler" and base.scheduler is not None:
            (folder / name).mkdir()
            (folder / name / "scheduler_config.json").write_bytes(json_text(base.scheduler))
        else:
            del index[name]
    if given is not None and index == base.index:  # as it was written
        shutil.copyfile(given / MODEL_INDEX, folder / MODEL_INDEX)
    else:
        (folder / MODEL_INDEX).write_bytes(json_text(index))
    (folder / SOURCES).write_bytes(json_text(sources))
    return folder


def _pipeline(file: Path, names: Mapping[str, TensorInfo], config: str | None) -> Pipeline:
    """The official model of a name, or the one whose tensors a file has."""
    if config is not None:
        if config not in MODELS:
            raise UsageError(
                f"config {config}: no such folder, and no official model of this name: expected a "
                f"pipeline folder, or one of {', '.join(MODELS)}"
            )
        return MODELS[config]
    layout = layout_of(names)
    tensors = read_single_file(file, layout.transformer) if layout else names
    fitting = [
        model
        for model, pipeline in MODELS.items()
        if (layout is None or layout.is_of(names, pipeline.parts["transformer"]))
        and _fits(pipeline.parts["transformer"], tensors)
    ]
    if not fitting:
        what = f"a {layout.transformer}" if layout else "a transformer"
        raise CheckpointError(
            f"{file} holds {what} of other sizes than the official models': expected the folder with "
            "its configuration (model_index.json, transformer/config.json); give it by --config"
        )
    if len(fitting) > 1:
        raise CheckpointError(
            f"{file} has tensors of the same sizes as {' and '.join(fitting)}: expected to know which; "
            f"give --config, such as --config {fitting[0]}"
        )
    return MODELS[fitting[0]]


def _fits(part: Part, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether an official transformer's tensors are all there, of its sizes."""
    wanted = meta_model(part, twin=False).state_dict()
    return all(n in tensors and tensors[n].shape == tuple(t.shape) for n, t in wanted.items())


def _in_diffusers(names: Iterable[str]) -> bool:
    """Whether most names are those of a transformer of diffusers, but for numbers of blocks."""
    parts = {p.parts["transformer"].class_name: p.parts["transformer"] for p in MODELS.values()}
    found = [NUMBER.sub(".#.", name) for name in names]
    for part in parts.values():
        known = {NUMBER.sub(".#.", name) for name in meta_model(part, twin=True).state_dict()}
        if 2 * sum(name in known for name in found) >= len(found):
            return True
    return False
