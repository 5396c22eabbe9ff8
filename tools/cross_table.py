"""Build for every system, run what runs here, and write the table of systems in docs/deploy.md.

    python tools/cross_table.py --write --bundle demo-out/fp4dit     # or exports the demo's

`tools/cross_build.py` builds. On Windows' side examples/cpp generates an image under wine, by the
onnxruntime.dll of the package index's wheel; it is compared with the image of the same program on this
machine, by the same version of ONNX Runtime.

Exit codes: 0 all that runs here is right, 1 something is not, 2 the table cannot be made.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cross_build
import deploy_rows
import deploy_table
import numpy as np
from binaries import read_binary
from check_aarch64 import demo_bundle
from cross_build import TARGETS, Target
from deploy_rows import KERNELS, Command, NotRunError, Row, Stage
from emulation import CheckError, windows_runtime
from pages import Section, written_by
from PIL import Image

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.evaluation.metrics import psnr

__all__ = ["Outcome", "outcome", "table", "verdict"]

TABLE = Section("deploy.md", "systems")


@dataclass(frozen=True)
class Outcome:
    """What was found of a target.

    Attributes:
        target: it.
        library: what was built, in a line; empty if nothing was.
        tests: what the C++ tests said; empty if they were not run.
        image: how far the example's image is from this machine's; empty if none was generated.
        problem: what failed.
    """

    target: Target
    library: str = ""
    tests: str = ""
    image: str = ""
    problem: str = ""


def outcome(target: Target, stage: Stage) -> Outcome:
    """Build a target, and run what runs here."""
    library = tests = image = ""
    try:
        path = cross_build.library(target)
        cross_build.inspected(target, path)
        found = read_binary(path)
        library = f"{path.stat().st_size / 1000:.0f} kB, from {found.oldest or target.zig} on"
        if target.emulator:
            tests = cross_build.tests(target)
        if target.container == "PE" and target.emulator:
            image = distance(target, stage)
    except (CheckError, NotRunError, ValueError) as error:
        return Outcome(target, library, tests, image, reason(error, stage))
    return Outcome(target, library, tests, image)


def reason(error: Exception, stage: Stage) -> str:
    """The line of an error that says most: a compiler's own, or the last."""
    lines = [line for line in str(error).splitlines() if "error: " in line]
    return deploy_table.plain_text(CheckError(lines[0] if lines else str(error)), stage)


def distance(target: Target, stage: Stage) -> str:
    """How far the image of a target's example is from the one that it generates here.

    Raises:
        CheckError: one of them fails, or it is another image.
        NotRunError: something that they need is absent.
    """
    here = deploy_rows.cpp(Row("here", "here", KERNELS, deploy_rows.cpp), stage)
    picture = stage.picture(target.name, ".bmp")
    words: tuple[str | Path, ...] = (*cross_build.runner(target), cross_build.example(target))
    options: tuple[str | Path, ...] = (
        "--library",
        cross_build.library(target),
        "--runtime",
        windows_runtime(stage.work),
    )
    there = Command(
        (*words, *options, stage.bundle, stage.prompt, picture),
        picture,
        here.version,
        cross_build.quiet(),
    )
    images = []
    for command in (here, there):
        deploy_table.run(command)
        with Image.open(command.picture) as opened:
            images.append(np.asarray(opened.convert("RGB")))
    largest = int(np.abs(images[0].astype(int) - images[1]).max())
    if not largest:
        return "all bits"
    db = psnr(images[1], images[0])
    said = f"{db:.1f} dB, at most {largest} of 255"
    if db < deploy_table.SAME_PICTURE_DB:
        raise CheckError(f"{said}: expected {deploy_table.SAME_PICTURE_DB:g} dB")
    return said


def verdict(row: Outcome) -> str:
    """A row's last cell."""
    if not row.library:
        return f"not built: {row.problem}"
    if row.problem:
        return f"fails: {row.problem}"
    if not row.tests:
        return "built, not run"
    return f"runs ({Path(row.target.emulator[0]).name})"


def table(found: Sequence[Outcome]) -> str:
    """The outcomes as Markdown."""
    titles = ("target", "wheel", "library", "C++ tests", "image", "")
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for row in found:
        cells = (row.target.name, row.target.tag, row.library, row.tests, row.image, verdict(row))
        lines.append(f"| {' | '.join((c or '-').replace('|', '/') for c in cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see the module's text for the exit codes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="default: the demo's, exported")
    parser.add_argument("--work", type=Path, help="folder to keep; default: a temporary one")
    parser.add_argument("--prompt", default=deploy_table.PROMPT)
    parser.add_argument("--write", action="store_true", help=f"put the table into {TABLE.page}")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        work = (given.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        try:
            bundle = given.bundle.resolve() if given.bundle else demo_bundle(work)
        except CheckError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        found = [outcome(t, Stage(bundle, work, given.prompt)) for t in TARGETS.values()]
    recipe = Bundle.open(bundle).manifest.recipe
    text = (
        f"{written_by('cross_table.py --write')}. Images: the embedded pipeline at {recipe.bits} by "
        f"{recipe.method}, {given.prompt!r}, seed 0, its 20 steps of 64x64 pixels.\n\n{table(found)}"
    )
    print(text)
    if given.write:
        TABLE.write(text)
    return 1 if any(row.problem and row.target.tag for row in found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
