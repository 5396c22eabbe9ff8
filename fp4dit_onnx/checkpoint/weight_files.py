"""Which files hold a component's weights: those that diffusers and transformers would read.

A folder may hold several sets: plain files and variants (``fp16``, ``ema``), one file and shards,
safetensors and pickles, what an older save left. Each library has names and a precedence of its own,
which are followed; where a set that it would read cannot be read here, the folder is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fp4dit_onnx.checkpoint.tensor_files import TensorInfo, read_header
from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.files import CHECKPOINT, LARGE, read_json

__all__ = ["LIBRARIES", "WeightFiles", "pipeline_variant", "read_weights"]

SHARD = re.compile(r"-\d+-of-\d+$")
"""The end of a shard's name before its suffix; no variant is called so."""


@dataclass(frozen=True)
class WeightFiles:
    """The stored tensors of one component.

    Attributes:
        tensors: by name, as the files have it.
        variant: the infix of the file names, such as ``fp16``; None for the plain ones.
        notes: what a reader should know of the choice.
    """

    tensors: Mapping[str, TensorInfo]
    variant: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Library:
    """How a library names weights, and what it reads first.

    Attributes:
        name: of the library.
        stem: of safetensors files.
        pickle: the stem of PyTorch's files.
        index_first: whether shards are read before a single file; else after it.
        legacy: an older spelling of a variant's index.
    """

    name: str
    stem: str
    pickle: str
    index_first: bool
    legacy: str | None = None

    def files(self, variant: str | None) -> list[str]:
        """Names of what holds a variant in safetensors, the library's first choice first."""
        indexes = [_with_variant(f"{self.stem}.safetensors.index.json", variant)]
        if self.legacy and variant:
            indexes.append(self.legacy.format(variant))
        single = [_with_variant(f"{self.stem}.safetensors", variant)]
        return indexes + single if self.index_first else single + indexes

    def pickles(self, variant: str | None) -> list[str]:
        """Names of what holds a variant in PyTorch's own format."""
        names = (f"{self.pickle}.bin", f"{self.pickle}.bin.index.json")
        return [_with_variant(name, variant) for name in names]


LIBRARIES = {
    library.name: library
    for library in (
        _Library(
            "diffusers",
            "diffusion_pytorch_model",
            "diffusion_pytorch_model",
            index_first=True,
            legacy="diffusion_pytorch_model.safetensors.{}.index.json",
        ),
        _Library("transformers", "model", "pytorch_model", index_first=False),
    )
}
"""By the name that model_index.json has for it."""


def _with_variant(name: str, variant: str | None) -> str:
    head, _, suffix = name.rpartition(".")
    return name if variant is None else f"{head}.{variant}.{suffix}"


def _library(folder: Path, name: str) -> _Library:
    if name not in LIBRARIES:
        raise CheckpointError(
            f"{folder} is of library {name!r}: expected {' or '.join(LIBRARIES)}, "
            "whose files alone are known"
        )
    return LIBRARIES[name]


def _held(folder: Path, library: _Library) -> dict[str | None, list[str]]:
    """Names of what a folder holds by variant, None for plain ones; the library's order."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    infixes = {part for name in names for part in name.split(".") if not SHARD.search(part)}
    found = {
        variant: [n for n in library.files(variant) + library.pickles(variant) if n in names]
        for variant in (None, *sorted(infixes))
    }
    return {variant: held for variant, held in found.items() if held}


def pipeline_variant(folders: Mapping[Path, str]) -> str | None:
    """The `variant=` with which diffusers loads components; None if it loads them without.

    Args:
        folders: of the components with weights -> their library.

    Raises:
        CheckpointError: a folder holds no weights, no single variant has all components, or several do.
    """
    held = {folder: _held(folder, _library(folder, name)) for folder, name in folders.items()}
    for folder, of_folder in held.items():
        if not of_folder:
            raise _no_weights(folder, LIBRARIES[folders[folder]])
    if all(None in of_folder for of_folder in held.values()):
        return None
    named = sorted({v for of_folder in held.values() for v in of_folder if v is not None})
    usable = [v for v in named if all(v in h or None in h for h in held.values())]
    if len(usable) == 1:
        return usable[0]
    lacking = next(folder for folder, of_folder in held.items() if None not in of_folder)
    found = ", ".join(files[0] for files in held[lacking].values())
    problem = (
        f"several variants would load: {', '.join(usable)}; keep one and move the others away"
        if usable
        else "and no single variant has all components; download one variant of all"
    )
    raise CheckpointError(
        f"{lacking} has no plain weights, which diffusers would read first (found {found}), "
        f"{problem}"
    )


def read_weights(folder: Path, library_name: str, variant: str | None = None) -> WeightFiles:
    """The tensors of a component's folder, from the files that its library would read.

    Args:
        folder: of the component.
        library_name: one of `LIBRARIES`.
        variant: that of the pipeline; a component that has none of it is read from plain files.

    Raises:
        CheckpointError: no weights, or pickles alone; a shard missing or damaged; a tensor that the
            index promises and its shard lacks, or that two shards hold.
    """
    library = _library(folder, library_name)
    held = _held(folder, library)
    chosen = variant if variant in held else None
    files = held.get(chosen)
    if files is None:
        raise _no_weights(folder, library)
    first, *others = files
    if first in library.pickles(chosen):
        raise _pickled(folder, first, held)
    path = folder / first
    tensors = _read_shards(path) if first.endswith(".json") else read_header(path)
    unread = [name for name in others if name in library.files(chosen)]
    notes = tuple(f"{first} is read, as {library.name} does, and not {name}" for name in unread)
    return WeightFiles(tensors, chosen, notes)


def _pickled(folder: Path, first: str, held: Mapping[str | None, list[str]]) -> CheckpointError:
    safe = [n for files in held.values() for n in files if ".safetensors" in n]
    if safe:
        return CheckpointError(
            f"{folder}: {first}, which diffusers would read, is not a safetensors file, and "
            f"{safe[0]} beside it is another set of weights: move {first} away to export "
            f"{safe[0]}, or save the pipeline again with safe_serialization=True"
        )
    return CheckpointError(
        f"{folder} holds PyTorch weights only ({first}): expected safetensors; load the "
        "pipeline in diffusers and save it with save_pretrained(..., safe_serialization=True)"
    )


def _no_weights(folder: Path, library: _Library) -> CheckpointError:
    suffixes = (".safetensors", ".bin", ".index.json")
    found = sorted(p.name for p in folder.iterdir() if p.name.endswith(suffixes))
    beside = f" (it holds {found[0]}, which {library.name} does not read)" if found else ""
    return CheckpointError(
        f"{folder} holds no weights{beside}: expected {library.files(None)[-1]} or "
        f"{library.files(None)[0]}; download the folder again, large files included"
    )


def _read_shards(index: Path) -> dict[str, TensorInfo]:
    """Every tensor of the files that an index names, as both libraries read them."""
    content = read_json(index, "the index of a model's shards", CHECKPOINT, limit=LARGE)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CheckpointError(
            f"{index} has no table 'weight_map' of tensor names and files; download it again"
        )
    headers = {name: _shard(index, name) for name in sorted(set(weight_map.values()))}
    for tensor, shard in weight_map.items():
        if tensor not in headers[shard]:
            raise CheckpointError(
                f"{index.parent / shard} lacks tensor {tensor!r}, which {index.name} places "
                "there; index and shards must come from one save: download the folder again"
            )
    return dict(_joined(headers))


def _joined(headers: Mapping[str, Mapping[str, TensorInfo]]) -> Iterator[tuple[str, TensorInfo]]:
    seen: dict[str, TensorInfo] = {}
    for header in headers.values():
        for name, info in header.items():
            if (first := seen.setdefault(name, info)) is not info:
                raise CheckpointError(
                    f"{first.file} and {info.file.name} both hold tensor {name!r}: shards must "
                    "come from one save; download the folder again"
                )
            yield name, info


def _shard(index: Path, name: str) -> dict[str, TensorInfo]:
    path = index.parent / name
    if Path(name).name != name or not path.is_file():
        raise CheckpointError(
            f"shard {name!r} not found in {index.parent}: {index.name} names it; "
            "download the missing shard"
        )
    return read_header(path)
