"""Measure a whole image, from prompt to PNG, against what would be run in the bundle's place.

    python tools/image_speed.py --folder xl --write                  # PixArt-XL size: about an hour
    python tools/image_speed.py --folder small --twin --rounds 1     # a small twin: two minutes

The folder gets a pipeline with random weights, its W4A6 bundle (text encoder W4A16) and the bundle that
leaves all layers in float, each unless it is there. `fp4dit-onnx bench --end-to-end` measures them on
an otherwise idle machine. With --write the tables go to docs/performance.md, between their marks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import Section, written_by
from performance import OURS, Measurement, run
from random_pipeline import make

__all__ = ["goal", "main", "table"]

TABLE = Section("performance.md", "a whole image")
MODEL = "pixart-alpha-512"
ENCODER_LAYERS = 2
"""Of T5-XXL's 24: in float32 all take 19 GB, which few machines have for every backend."""
RUNS = (("20", "4.5"), ("4", "4.5"), ("4", "1"))
"""Steps and guidance."""
FASTER, MEMORY = 2.5, 0.5
"""Goals: times as fast as the best peer, in this share of its memory."""
ROUNDED = ("--method", "fp-rtn", "--no-measure", "--no-report")
FLOAT = ("--rule", "*=none", "--text-encoder-bits", "none", "--attention-format", "none")


def export(*words: str) -> None:
    """Run ``fp4dit-onnx export``, in a process of its own."""
    command = [sys.executable, "-P", "-m", "fp4dit_onnx", "export", *words]
    subprocess.run(command, check=True)


def prepare(folder: Path, encoder_layers: int | None, *, twin: bool) -> None:
    """Make what is measured in `folder`, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = folder / "pipeline"
    if not pipeline.exists():
        layers = None if twin else encoder_layers
        make(MODEL, pipeline, twin=twin, dtype="bfloat16", encoder_layers=layers)
    for name, options in (("bundle", ("--text-encoder-bits", "w4a16")), ("float", FLOAT)):
        if not (folder / name).exists():
            export(str(pipeline), "-o", str(folder / name), *ROUNDED, *options)


def measurements(folder: Path, rounds: int) -> Iterator[Measurement]:
    """All runs, in order."""
    from fp4dit_onnx.runtime.library import supported_isas

    models = ("--float-bundle", str(folder / "float"), "--model", str(folder / "pipeline"))
    common = ("--end-to-end", *models, "--isa", supported_isas()[0], "--rounds", str(rounds))
    for steps, guidance in RUNS:
        given = (str(folder / "bundle"), *common, "--steps", steps, "--guidance", guidance)
        yield Measurement(f"{steps} steps, guidance {guidance}", given)


def table(case: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the table of one case: medians, and the quartiles of the image's time."""
    outcomes = case["outcomes"]
    stages = list(outcomes[0]["stages"]) if outcomes else []
    heads = ("backend", "load s", *(f"{stage} s" for stage in stages), "image s", "quartiles")
    heads += ("least - most", "x baseline", "peak MB", "of its memory", "PSNR dB")
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for one in outcomes:
        time, ratio, peak, share, psnr = (
            one[key] for key in ("seconds", "ratio", "peak_bytes", "memory_ratio", "psnr_db")
        )
        cells = (
            one["name"],
            f"{one['load']['median']:.2f}",
            *(f"{one['stages'][stage]['median']:.2f}" for stage in stages),
            f"{time['median']:.2f}",
            f"{time['low']:.2f} - {time['high']:.2f}",
            f"{time['least']:.2f} - {time['most']:.2f}",
            f"{ratio['median']:.2f}" if ratio else "",
            f"{peak['median'] / 1e6:.0f}" if peak else "",
            f"{share:.0%}" if share else "",
            f"{psnr:.1f}" if psnr is not None else "",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    for name, reason in case["absent"].items():
        yield f"Absent: {name}: {reason}\n"


def goal(case: Mapping[str, Any]) -> str:
    """How ours compares with the fastest peer, a line."""
    ours = [one for one in case["outcomes"] if one["name"].startswith(OURS.strip())]
    peers = [one for one in case["outcomes"] if one not in ours]
    if not ours or not peers:
        return "The goal is not measured: ours or all peers are absent."
    best = min(peers, key=lambda one: float(one["seconds"]["median"]))
    faster = best["seconds"]["median"] / ours[0]["seconds"]["median"]
    text = f"Best peer {best['name']}: ours is {faster:.2f} times as fast (goal {FASTER:g})"
    met = faster >= FASTER
    shares = [
        (one["peak_bytes"]["median"] / best["peak_bytes"]["median"], one["name"])
        for one in ours
        if one["peak_bytes"] and best["peak_bytes"]
    ]
    if shares:
        text += f", in {shares[0][0]:.0%} of its memory (goal {MEMORY:.0%})"
        text += "".join(f", {share:.0%} as {name}" for share, name in shares[1:])
        met = met and min(shares)[0] < MEMORY
    return f"{text}: {'met' if met else 'missed'}."


def section(
    folder: Path, runs: Sequence[tuple[Measurement, Mapping[str, Any]]], layers: str
) -> str:
    """What the page says, `folder` by its name alone."""
    machine = runs[0][1]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{written_by('image_speed.py --folder DIR --write')}: {machine['cpu']},",
        f"{machine['threads']} threads on {machine['cores']} cores; {versions}. Random weights of",
        f"{MODEL}, {layers}. Each turn is a process of its own; medians.\n",
    ]
    for measurement, found in runs:
        (case,) = found["cases"]
        command = measurement.command.replace(str(folder), folder.name)
        lines += [f"**{case['name']}**: `{command}`\n", *table(case)]
        if measurement is runs[0][0]:
            lines += [f"{goal(case)}\n"]
    return "\n".join(lines).rstrip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="of what is measured")
    parser.add_argument(
        "--twin", action="store_true", help="a small pipeline of the same structure"
    )
    parser.add_argument(
        "--encoder-layers", type=int, default=ENCODER_LAYERS, help="of T5-XXL's 24"
    )
    parser.add_argument("--rounds", type=int, default=3, help="images by each backend")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args(arguments)
    prepare(given.folder, given.encoder_layers, twin=given.twin)
    runs = [(m, run(m)) for m in measurements(given.folder, given.rounds)]
    layers = "a small twin" if given.twin else f"T5-XXL with {given.encoder_layers} of its layers"
    text = section(given.folder, runs, layers)
    if given.write:
        TABLE.write(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
