"""``fp4dit-onnx generate``."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.commands.output import print_json, print_line, reporter
from fp4dit_onnx.commands.parameters import BundleFolder, Device, Json
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.options import INPUT, MACHINE, OUTPUT, SAMPLING, Option
from fp4dit_onnx.prompts import read_prompts
from fp4dit_onnx.runtime.beginning import STRENGTH, checked_strength, read_image, steps_taken
from fp4dit_onnx.runtime.sampling import LARGEST_COUNT
from fp4dit_onnx.system.devices import CPU
from fp4dit_onnx.system.outputs import check_file, check_place, written_whole
from fp4dit_onnx.system.texts import utf8_text
from fp4dit_onnx.values import checked_seed, whole

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["picture_paths", "run"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BATCH_SIZE = 8
CHANNELS = 3
"""Bytes of a pixel, which a file takes at most; noise hardly shrinks."""


def run(
    bundle: BundleFolder,
    output: Annotated[
        Path,
        Option(
            f"Image file ({', '.join(SUFFIXES)}), or a folder for several images.",
            OUTPUT,
            unit="PATH",
            flags=("--output", "-o"),
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        Option(
            "Prompt; for DiT the name or number of a class. Repeatable.",
            INPUT,
            unit="TEXT",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        Option("Text file with one prompt per line, after those of --prompt.", INPUT, unit="FILE"),
    ] = None,
    negative_prompt: Annotated[
        str, Option("Negative prompt: what the image should not show.", INPUT, unit="TEXT")
    ] = "",
    count: Annotated[
        int | None,
        Option(
            "Images per prompt, from seeds SEED, SEED + 1, ...; by default 1.",
            SAMPLING,
            unit="IMAGES",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        Option(
            "Seed of the noise, the same for every prompt; by default 0.",
            SAMPLING,
            unit="SEED",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        Option(
            "Several seeds, such as 1,2,3: one image per prompt and seed; files are named after "
            "the seed.",
            SAMPLING,
            unit="SEEDS",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        Option(
            "LoRA to add at run time, FILE or FILE:SCALE, made by lora convert for this bundle. "
            "Repeatable.",
            INPUT,
            unit="ADAPTER",
        ),
    ] = None,
    steps: Annotated[
        int | None, Option("Denoising steps; by default the bundle's.", SAMPLING, unit="STEPS")
    ] = None,
    guidance: Annotated[
        float | None,
        Option(
            "Scale of classifier-free guidance; by default the bundle's.", SAMPLING, unit="SCALE"
        ),
    ] = None,
    height: Annotated[
        int | None, Option("Height; by default the bundle's.", SAMPLING, unit="PIXELS")
    ] = None,
    width: Annotated[
        int | None, Option("Width; by default the bundle's.", SAMPLING, unit="PIXELS")
    ] = None,
    image: Annotated[
        Path | None,
        Option(
            "Image to begin with in place of noise alone: RGB, of the size that is generated.",
            INPUT,
            unit="FILE",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        Option(
            f"How much of --image is changed, above 0 and at most 1; by default {STRENGTH}.",
            SAMPLING,
            unit="SHARE",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        Option(
            "White where --image is made anew, black where it stays: greyscale, of its size.",
            INPUT,
            unit="FILE",
        ),
    ] = None,
    device: Device = CPU,
    threads: Annotated[
        int | None,
        Option(
            "Threads per operator on the CPU; by default all cores.",
            MACHINE,
            unit="THREADS",
            min=1,
        ),
    ] = None,
    library: Annotated[
        bool | None,
        Option(
            "Use the kernels of the custom-op library, or the function bodies; by default the "
            "kernels where there are some for the device.",
            MACHINE,
        ),
    ] = None,
    cuda_graph: Annotated[
        bool,
        Option(
            "Record the launches of a denoising step once, and replay them: less work of the CPU "
            "between kernels, and the weights once more on the GPU.",
            MACHINE,
        ),
    ] = False,
    low_memory: Annotated[
        bool,
        Option(
            "Have one model in memory at a time: each is loaded when it is used, on the CPU alone.",
            MACHINE,
        ),
    ] = False,
    overwrite: Annotated[bool, Option("Replace existing image files.", OUTPUT)] = False,
    json: Json = False,
) -> None:
    """Generate images with a bundle, on ONNX Runtime alone."""
    given = [utf8_text("prompt", text) for text in prompt or ()]
    negative_prompt = utf8_text("negative prompt", negative_prompt)
    texts = [*given, *(read_prompts(prompts) if prompts else ())]
    if not texts:
        raise UsageError("no prompt: expected --prompt TEXT or --prompts FILE")
    original = _original(image, strength, mask)
    chosen = chosen_seeds(seed, seeds, count)
    images = [(text, one) for text in texts for one in chosen]
    paths = picture_paths(output, images, overwrite=overwrite)
    opened = Bundle.open(bundle)
    from fp4dit_onnx.runtime.pipeline import Pipeline
    from fp4dit_onnx.runtime.providers import place
    from fp4dit_onnx.runtime.session import with_library

    start = time.monotonic()
    placed = place(device, reporter().note)
    kernels = with_library(placed, library)
    pipeline = Pipeline(
        opened.folder,
        device=placed,
        library=kernels,
        threads=threads,
        cuda_graph=cuda_graph,
        low_memory=low_memory,
    )
    if adapter:
        pipeline.use_adapters(*adapter)
    loaded = time.monotonic()
    settings = pipeline.settings(steps=steps, guidance=guidance, height=height, width=width)
    check_place(paths[0], len(images) * settings.height * settings.width * CHANNELS)
    steps_each = steps_taken(settings.steps, original.get("strength", 1))
    total = steps_each * -(-len(images) // BATCH_SIZE)
    with reporter().stage(f"generating {len(images)} images", total, "denoising steps") as advance:
        pictures = pipeline.generate(
            [text for text, _ in images],
            negative_prompt=negative_prompt,
            seeds=[one for _, one in images],
            steps=steps,
            guidance=guidance,
            height=height,
            width=width,
            **original,
            batch_size=BATCH_SIZE,
            progress=lambda done, of: advance(1),
        )
    for picture, path in zip(pictures, paths, strict=True):
        _save(picture, path, overwrite=overwrite)
    seconds = {"load": loaded - start, "draw": time.monotonic() - loaded}
    rows = [
        {"prompt": text, "seed": one, "file": str(path)}
        for (text, one), path in zip(images, paths, strict=True)
    ]
    if json:
        print_json(
            {"pictures": rows, "seconds": seconds, "library": kernels, "device": placed.name}
        )
        return
    for row in rows:
        print_line(f"{row['file']}: {row['prompt']}")
    by = "kernels" if kernels else "function bodies"
    print_line(
        f"loaded in {seconds['load']:.1f} s, generated in {seconds['draw']:.1f} s on {placed.name} by "
        f"{by}"
    )


def _original(image: Path | None, strength: float | None, mask: Path | None) -> dict[str, Any]:
    """The image to begin with, as `Pipeline.generate` takes it."""
    chosen = checked_strength(STRENGTH if strength is None else strength)
    if image is None:
        for name, given in (("--strength", strength), ("--mask", mask)):
            if given is not None:
                raise UsageError(f"{name} without an image: expected --image FILE with it")
        return {}
    found = {
        "image": read_image(image, "an image to begin with"),
        "strength": chosen,
    }
    return found if mask is None else {**found, "mask": read_image(mask, "a mask")}


def chosen_seeds(seed: int | None, seeds: str | None, count: int | None) -> list[int]:
    """The seeds of each prompt, from ``--seed``, ``--seeds`` and ``--count``.

    Raises:
        UsageError: no seeds, one twice, or options that contradict each other.
    """
    if seeds is None:
        first = checked_seed(seed or 0)
        return list(
            range(first, first + whole("count", 1 if count is None else count, 1, LARGEST_COUNT))
        )
    words = [word.strip() for word in seeds.split(",")]
    if not all(re.fullmatch("[0-9]{1,20}", word) for word in words):
        raise UsageError(f"seeds {seeds!r}: expected whole numbers from 0 with commas, as 1,2,3")
    found = [checked_seed(int(word)) for word in words]
    if len(set(found)) < len(found):
        raise UsageError(
            f"seeds {seeds!r}: expected each once, the same seed gives the same image"
        )
    if seed is not None:
        raise UsageError("--seed and --seeds: expected one of them")
    if count not in (None, len(found)):
        raise UsageError(f"--count {count} with {len(found)} seeds: leave --count out")
    return found


def picture_paths(
    output: Path, images: Sequence[tuple[str, int]], *, overwrite: bool
) -> list[Path]:
    """Where each image goes: `output` itself for one, else files in the folder `output`.

    Args:
        output: file or folder.
        images: prompt and seed of each, a prompt's side by side.
        overwrite: files may be there.

    Raises:
        UsageError: one file for several images, or an unknown kind of image; see `check_file` too.
    """
    suffix = output.suffix.lower()
    if output.is_dir() or not suffix:
        names = _names(images)
        paths = [output / f"{name}.png" for name in names]
    elif suffix not in SUFFIXES:
        raise UsageError(
            f"output {output}: expected a name ending in {', '.join(SUFFIXES)}, or a folder"
        )
    elif len(images) > 1:
        raise UsageError(f"output {output} is one file for {len(images)} images: give a folder")
    else:
        paths = [output]
    for path in paths:
        check_file(path, overwrite=overwrite)
    return paths


def _names(images: Sequence[tuple[str, int]]) -> list[str]:
    """Of files: number and text of the prompt, and the seed where a prompt has several."""
    seeds = list(dict.fromkeys(seed for _, seed in images))
    prompts = [text for text, _ in images[:: len(seeds)]]
    width, digits = len(str(len(prompts) - 1)), len(str(max(seeds)))
    return [
        f"{number:0{width}}-{_slug(text)}" + (f"-seed-{seed:0{digits}}" if len(seeds) > 1 else "")
        for number, text in enumerate(prompts)
        for seed in seeds
    ]


def _slug(text: str) -> str:
    """Letters and digits of any script, with dashes between words."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:40].strip("-") or "image"


def _save(picture: Image.Image, path: Path, *, overwrite: bool) -> None:
    with written_whole(path, overwrite=overwrite) as partial:
        picture.save(partial)
