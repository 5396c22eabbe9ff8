"""``fp4dit-onnx generate``."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fp4dit_onnx.bundle import Bundle
from fp4dit_onnx.commands.output import print_json, print_line, reporter
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.prompts import read_prompts
from fp4dit_onnx.texts import utf8_text

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["picture_paths", "run"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BATCH_SIZE = 8


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder made by export.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Picture file, or a folder for several pictures."),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="What to draw; for DiT the name or number of a class. Repeatable, a picture each."
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with a prompt a line, after those of --prompt.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to lead away from.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the noise, for every picture.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Sampler steps; by default the bundle's.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; by default the bundle's.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; by default the bundle's.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; by default the bundle's.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one operator; by default all cores.")
    ] = None,
    library: Annotated[
        bool,
        typer.Option("--library/--no-library", help="Run the kernels, or the function bodies."),
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace picture files that are there.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Draw pictures with a bundle, on ONNX Runtime alone."""
    given = [utf8_text("prompt", text) for text in prompt or ()]
    negative_prompt = utf8_text("negative prompt", negative_prompt)
    texts = [*given, *(read_prompts(prompts) if prompts else ())]
    if not texts:
        raise UsageError("nothing to draw: expected --prompt TEXT or --prompts FILE")
    paths = picture_paths(output, texts, overwrite=overwrite)
    opened = Bundle.open(bundle)
    from fp4dit_onnx.runtime.pipeline import Pipeline

    start = time.monotonic()
    pipeline = Pipeline(opened.folder, library=library, threads=threads)
    loaded = time.monotonic()
    settings = pipeline.settings(steps=steps, guidance=guidance, height=height, width=width)
    total = settings.steps * -(-len(texts) // BATCH_SIZE)
    with reporter().stage(f"drawing {len(texts)}", total) as advance:
        pictures = pipeline.generate(
            texts,
            negative_prompt=negative_prompt,
            seeds=seed,
            steps=steps,
            guidance=guidance,
            height=height,
            width=width,
            batch_size=BATCH_SIZE,
            progress=lambda done, of: advance(1),
        )
    for picture, path in zip(pictures, paths, strict=True):
        _save(picture, path)
    seconds = {"load": loaded - start, "draw": time.monotonic() - loaded}
    if json:
        rows = [
            {"prompt": text, "seed": seed, "file": str(path)}
            for text, path in zip(texts, paths, strict=True)
        ]
        print_json({"pictures": rows, "seconds": seconds, "library": library})
        return
    for text, path in zip(texts, paths, strict=True):
        print_line(f"{path}: {text}")
    print_line(f"loaded in {seconds['load']:.1f} s, drawn in {seconds['draw']:.1f} s")


def picture_paths(output: Path, prompts: Sequence[str], *, overwrite: bool) -> list[Path]:
    """Where each picture goes: `output` itself for one prompt, else files in the folder `output`.

    Raises:
        UsageError: one file for several prompts, an unknown kind of picture, or a file that is
            there without `overwrite`.
    """
    suffix = output.suffix.lower()
    if output.is_dir() or not suffix:
        width = len(str(len(prompts) - 1))
        paths = [output / f"{i:0{width}}-{_slug(text)}.png" for i, text in enumerate(prompts)]
    elif suffix not in SUFFIXES:
        raise UsageError(
            f"output {output}: expected a name ending in {', '.join(SUFFIXES)}, or a folder"
        )
    elif len(prompts) > 1:
        raise UsageError(
            f"output {output} is one file, there are {len(prompts)} prompts: give a folder"
        )
    else:
        paths = [output]
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        raise UsageError(f"{there[0]} exists: replace it with --overwrite, or choose another name")
    return paths


def _slug(text: str) -> str:
    """Letters and digits of any script, with dashes between words."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:40].strip("-") or "picture"


def _save(picture: Image.Image, path: Path) -> None:
    """Write beside, then rename: a picture is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        picture.save(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
