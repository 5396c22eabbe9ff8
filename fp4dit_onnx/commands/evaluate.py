"""``fp4dit-onnx evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.checkpoint.checkpoint import demo_folder
from fp4dit_onnx.commands.generate import SUFFIXES
from fp4dit_onnx.commands.output import print_json, print_line, print_table, reporter
from fp4dit_onnx.commands.parameters import Device, FloatDevice, Json, LoraFiles, PromptFile
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.evaluation.prompts import evaluation_prompts
from fp4dit_onnx.exporting.options import INPUT, MACHINE, OUTPUT, SAMPLING, Option
from fp4dit_onnx.runtime.providers import place
from fp4dit_onnx.system.devices import AUTO, CPU
from fp4dit_onnx.system.executors import HERE, place_of
from fp4dit_onnx.system.outputs import check_file, written_whole

if TYPE_CHECKING:
    from fp4dit_onnx.evaluation.metrics import Score
    from fp4dit_onnx.evaluation.quality import Evaluation, VariantQuality

__all__ = ["run"]

SHOWN_STEPS = 5
"""Of the sampler, in the line below the table; --json has all."""


def run(
    bundles: Annotated[
        list[Path], Option("Folders made by export.", INPUT, unit="BUNDLE", positional=True)
    ],
    model: Annotated[
        Path | None,
        Option(
            "The float pipeline; by default the embedded demo pipeline.", INPUT, unit="PIPELINE"
        ),
    ] = None,
    lora: LoraFiles = None,
    prompts: PromptFile = None,
    count: Annotated[
        int, Option("Prompts to generate images of.", SAMPLING, unit="PROMPTS", min=1)
    ] = 8,
    seeds: Annotated[
        int, Option("Images per prompt, from seeds 0, 1, ...", SAMPLING, unit="IMAGES", min=1)
    ] = 1,
    grid: Annotated[
        Path | None,
        Option("Also write the images side by side to this file.", OUTPUT, unit="FILE"),
    ] = None,
    device: Device = CPU,
    float_device: FloatDevice = AUTO,
    executor: Annotated[
        str,
        Option(
            "Where batches of images are generated: local, one after the other in this process; ray or "
            "ray=HOST:PORT, on the machines of a Ray cluster. The result is the same.",
            MACHINE,
            unit="WHERE",
        ),
    ] = HERE,
    json: Json = False,
) -> None:
    """Compare a bundle's images with those of the float model."""
    if grid is not None:  # before hours of generating
        if grid.suffix.lower() not in SUFFIXES:
            raise UsageError(f"grid {grid}: expected a name ending in {', '.join(SUFFIXES)}")
        check_file(grid)
    if place_of(executor).elsewhere and ":" in device:
        raise UsageError(
            f"device {device} with executor ray: each machine has a number of its own for what Ray "
            f"gives a call: expected --device {device.partition(':')[0]}"
        )
    placed = place(device, reporter().note)
    folders = _by_name(bundles, model)
    texts = evaluation_prompts(prompts, model, count)
    from fp4dit_onnx.evaluation.quality import evaluate

    found = evaluate(
        folders,
        model or demo_folder(),
        texts,
        range(seeds),
        reporter=reporter(),
        lora=lora or (),
        device=placed.name,
        float_device=float_device,
        executor=executor,
    )
    if grid is not None:
        _write_grid(found, grid)
    if json:
        print_json(found.to_json())
    else:
        _print_scores(found)
        if grid is not None:
            print_line(f"{grid} written")


def _by_name(bundles: Sequence[Path], model: Path | None) -> dict[str, Path]:
    """Bundles by what tells them apart: recipe and bits, as far as these differ; else folder or path."""
    opened = [Bundle.open(path) for path in bundles]
    for bundle in opened:
        source = bundle.manifest.source.name
        if model is None and source != demo_folder().name:
            raise UsageError(
                f"{bundle.folder} was made from {source!r}, not from the embedded "
                "demo pipeline: give the float pipeline with --model"
            )
    recipes = [bundle.manifest.recipe for bundle in opened]
    facts = ([r.method for r in recipes], [r.bits for r in recipes])
    differing = [column for column in facts if len(set(column)) > 1] or facts[1:]
    candidates = (
        [" ".join(row) for row in zip(*differing, strict=True)],
        [path.resolve().name for path in bundles],
        [str(path) for path in bundles],
    )
    names = next((n for n in candidates if all(n) and len(set(n)) == len(n)), None)
    if names is None:
        raise UsageError("the same bundle is given twice: give each once")
    return dict(zip(names, bundles, strict=True))


def _print_scores(found: Evaluation) -> None:
    """The table, the latents' SQNR by denoising step, and what is absent."""
    from fp4dit_onnx.evaluation.metrics import METRICS

    rows = []
    for variant in (found.reference, *found.bundles):
        if variant.latent_sqnr:
            rows.append(
                _row(variant.name, "latent SQNR, last step", "dB", variant.latent_sqnr[-1])
            )
        for name, score in variant.scores.items():
            metric = METRICS[name]
            label = name if metric.larger_is_better else f"{name} (smaller is better)"
            rows.append(_row(variant.name, label, metric.unit, score))
    sampling = found.sampling
    seeds = "seed" if len(found.seeds) == 1 else "seeds"
    title = (
        f"{len(found.prompts)} prompts x {len(found.seeds)} {seeds} against the float model, "
        f"{sampling.steps} denoising steps, guidance scale {sampling.guidance:g}"
    )
    columns = ("model", "metric", "unit", ">mean", ">standard error", ">lowest", ">highest")
    print_table(title, columns, rows)
    for bundle in found.bundles:
        print_line(f"latent SQNR of {bundle.name} in dB after step {_along_steps(bundle)}")
    for name, reason in found.absent.items():
        print_line(f"absent: {name}: {reason}")


def _row(variant: str, label: str, unit: str, score: Score) -> tuple[str, ...]:
    digits = 2 if unit == "dB" else 4
    numbers = (score.mean, score.standard_error, min(score.values), max(score.values))
    cells = ("-" if number is None else f"{number:.{digits}f}" for number in numbers)
    return (variant, label, unit or "-", *cells)


def _along_steps(bundle: VariantQuality) -> str:
    """A few steps from the first to the last, counted from 1, with their means."""
    last = len(bundle.latent_sqnr) - 1
    chosen = sorted({round(last * i / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)})
    return ", ".join(f"{i + 1}: {bundle.latent_sqnr[i].mean:.1f}" for i in chosen)


def _write_grid(found: Evaluation, path: Path) -> None:
    from fp4dit_onnx.evaluation.image_grid import image_grid

    captions = [
        prompt if len(found.seeds) == 1 else f"{prompt} (seed {seed})"
        for prompt in found.prompts
        for seed in found.seeds
    ]
    with written_whole(path) as partial:
        image_grid(found.pictures, captions).save(partial)
