"""Make a diffusers pipeline with random weights: an official model's layout, or its small twin.

    python tools/random_pipeline.py pixart-alpha-512 -o twin --twin
    python tools/random_pipeline.py flux-dev -o flux --dtype bfloat16 --components transformer

The folder is as diffusers' save_pretrained writes it: configurations, safetensors, shards with an
index, tokenizers. The weights are drawn tensor by tensor, so that a model of any size can be made
in little memory. Such a pipeline shows that a model of its structure and size can be exported, and
how long it takes; its images are noise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import small_tokenizers
from random_weights import DTYPES, Drawer, Tensor, bytes_of_shards, tensors_of, write_shards

from fp4dit_onnx.errors import Fp4DitError, UsageError
from fp4dit_onnx.official.models import MODELS, Part, Pipeline
from fp4dit_onnx.official.modules import meta_model

__all__ = ["describe", "make"]

STORED_PREFIX = {"CLIPTextModel": "text_model."}
"""What transformers 5 takes off the names of stored tensors."""


@dataclass(frozen=True)
class Described:
    """A component with weights, before they are drawn.

    Attributes:
        part: what the table says of it.
        config: text of its config.json.
        tensors: in the order in which they are stored.
    """

    part: Part
    config: str
    tensors: list[Tensor]


def describe(part: Part, *, twin: bool, dtype: str = "float32", legacy: bool = False) -> Described:
    """Configuration and tensors of a component with weights.

    Args:
        part: of a pipeline of `official.models.MODELS`.
        twin: the small one.
        dtype: of the weights.
        legacy: the class name and values of the published file, where that is older.
    """
    model = meta_model(part, twin=twin)
    tensors = tensors_of(model, STORED_PREFIX.get(part.class_name, ""))
    if part.library == "transformers":
        model.config.architectures = [part.class_name]
        model.config.dtype = dtype
        return Described(part, model.config.to_json_string(), tensors)
    name, further = part.legacy if legacy and part.legacy else (part.class_name, {})
    values = {**further, **part.config, **(part.twin if twin else {})}
    return Described(part, _diffusers_config(name, values), tensors)


def _diffusers_config(class_name: str, values: Mapping[str, Any]) -> str:
    import diffusers

    head = {"_class_name": class_name, "_diffusers_version": diffusers.__version__}
    return json.dumps({**head, **dict(sorted(values.items()))}, indent=2) + "\n"


def make(
    name: str,
    folder: Path,
    *,
    twin: bool,
    dtype: str = "float32",
    seed: int = 0,
    shard_bytes: int | None = None,
    components: Collection[str] | None = None,
    legacy: bool = False,
    encoder_layers: int | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> None:
    """Write a pipeline with random weights to the new folder `folder`, whole or not at all.

    Args:
        name: of the model, a key of `official.models.MODELS`.
        folder: absent or empty.
        twin: a small pipeline of the same classes and switches.
        dtype: of the weights: float32, float16 or bfloat16.
        seed: of the weights.
        shard_bytes: of one weight file, if no single tensor is larger; None makes as many as the
            official repository has.
        components: folders to write; None is all. The index lists what is written.
        legacy: the transformer's class as the published files have it, where that is older.
        encoder_layers: of each text encoder, in place of its own number.
        note: takes a line on each component.

    Raises:
        UsageError: no such model, type or component, or no room for it.
        MissingExtraError: the extra ``export`` is not installed.
    """
    pipeline = _pipeline(name)
    _check(pipeline, name, dtype, seed, shard_bytes, components)
    parts = {n: p for n, p in pipeline.parts.items() if components is None or n in components}
    if encoder_layers is not None:
        parts = {n: _shortened(n, p, encoder_layers) for n, p in parts.items()}
    described = {
        n: describe(p, twin=twin, dtype=dtype, legacy=legacy)
        for n, p in parts.items()
        if not n.startswith(("scheduler", "tokenizer"))
    }
    sizes = {n: DTYPES[dtype][1] * sum(t.size for t in d.tensors) for n, d in described.items()}
    with _new_folder(Path(folder), sum(sizes.values())) as partial:
        for part_name, part in parts.items():
            if part_name not in described:
                note(part_name)
                _write_settings(partial / part_name, part_name, part)
                continue
            note(f"{part_name}: {part.class_name}, {sizes[part_name]:,} bytes")
            drawer, tensors = Drawer(seed, part_name), described[part_name].tensors
            most = shard_bytes or bytes_of_shards(tensors, dtype, part.shards)
            _write_weights(partial / part_name, described[part_name], drawer, dtype, most)
        _write_index(partial, pipeline, parts, legacy=legacy)


def _shortened(name: str, part: Part, layers: int) -> Part:
    """A text encoder with so many layers; other parts as they are."""
    if not name.startswith("text_encoder"):
        return part
    if layers < 1:
        raise UsageError(f"text encoder with {layers} layers: expected at least 1")
    (key,) = {"num_layers", "num_hidden_layers"} & part.config.keys()
    return replace(part, config={**part.config, key: layers})


def _pipeline(name: str) -> Pipeline:
    if name not in MODELS:
        raise UsageError(f"no model {name!r}: expected one of {', '.join(MODELS)}")
    return MODELS[name]


def _check(
    pipeline: Pipeline,
    name: str,
    dtype: str,
    seed: int,
    shard_bytes: int | None,
    components: Collection[str] | None,
) -> None:
    if dtype not in DTYPES:
        raise UsageError(f"no type {dtype!r}: expected one of {', '.join(DTYPES)}")
    if seed < 0:
        raise UsageError(f"seed {seed}: expected 0 or more")
    if shard_bytes is not None and shard_bytes < 1:
        raise UsageError(f"shards of {shard_bytes} bytes: expected at least 1")
    unknown = sorted(set(components or ()) - set(pipeline.parts))
    if unknown or (components is not None and not components):
        found = ", ".join(map(repr, unknown)) or "none"
        expected = ", ".join(pipeline.parts)
        raise UsageError(f"components of {name}: found {found}, expected some of {expected}")


@contextmanager
def _new_folder(folder: Path, nbytes: int) -> Iterator[Path]:
    """A folder beside `folder`, which takes its name at the end and vanishes on an error."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder: give another one")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"{parent} is not a folder: make it first")
    free = shutil.disk_usage(parent).free
    if nbytes > free:
        raise UsageError(f"{folder} needs {nbytes:,} bytes and {free:,} are free: give more room")
    partial = parent / f".{folder.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_settings(target: Path, name: str, part: Part) -> None:
    """Write a tokenizer or a scheduler."""
    if name.startswith("tokenizer"):
        small_tokenizers.write(target, part.class_name, part.config)
        return
    target.mkdir()
    config = _diffusers_config(part.class_name, part.config)
    (target / "scheduler_config.json").write_text(config)


def _write_weights(
    target: Path, described: Described, drawer: Drawer, dtype: str, shard_bytes: int
) -> None:
    """Write a component with weights."""
    target.mkdir()
    (target / "config.json").write_text(described.config)
    is_text = described.part.library == "transformers"
    stem = "model" if is_text else "diffusion_pytorch_model"
    write_shards(target, stem, described.tensors, drawer, dtype, shard_bytes)


def _write_index(
    folder: Path, pipeline: Pipeline, parts: Mapping[str, Part], *, legacy: bool
) -> None:
    names = {
        name: part.legacy[0] if legacy and part.legacy else part.class_name
        for name, part in parts.items()
    }
    listed = {name: [part.library, names[name]] for name, part in parts.items()}
    text = _diffusers_config(pipeline.class_name, {**pipeline.index, **listed})
    (folder / "model_index.json").write_text(text)


class Progress:
    """Lines on stderr: what begins, and after how many seconds."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        """Print one line."""
        print(f"{time.monotonic() - self._start:6.1f} s  {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", nargs="?", help="of the model; --list shows them")
    parser.add_argument("-o", "--output", type=Path, help="folder to make")
    parser.add_argument("--twin", action="store_true", help="a small one of the same structure")
    parser.add_argument("--dtype", default="float32", help=", ".join(DTYPES))
    parser.add_argument("--components", help="folders to write, with commas between; else all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--shard-bytes", type=int, help="of one weight file (default: as many files as published)"
    )
    parser.add_argument(
        "--legacy", action="store_true", help="the class name of older published files"
    )
    parser.add_argument("--encoder-layers", type=int, help="of each text encoder; else its own")
    parser.add_argument("--list", action="store_true", help="show the models and leave")
    given = parser.parse_args(arguments)
    if given.list:
        for name, pipeline in MODELS.items():
            print(f"{name:22} {pipeline.class_name}: {', '.join(pipeline.parts)}")
        return
    if given.name is None or given.output is None:
        parser.error("expected the name of a model and -o FOLDER")
    note = Progress()
    try:
        make(
            given.name,
            given.output,
            twin=given.twin,
            dtype=given.dtype,
            seed=given.seed,
            shard_bytes=given.shard_bytes,
            components=None if given.components is None else given.components.split(","),
            legacy=given.legacy,
            encoder_layers=given.encoder_layers,
            note=note,
        )
        note(f"{given.output} is made")
    except Fp4DitError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
