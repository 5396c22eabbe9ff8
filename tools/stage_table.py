"""Measure single stages in the place of GPTQ's own: each transform with each range and rounding.

    python tools/stage_table.py --bits w4a4 --output stages.md
    python tools/stage_table.py --bits w4a6 --base tuned --transforms "none; hadamard" --prompts 8

A table of image PSNR against the float model, and the best combination. Formats, groups and
calibration data are those of the base recipe. What is done is kept in the work folder, as
tools/quality.py keeps it: a killed run resumes.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pages import commit
from quality import Bench, Row
from quality_page import COLUMNS

from fp4dit_onnx.calibration.recipe_tables import method_names
from fp4dit_onnx.calibration.stages import INPUTS, STAGES
from fp4dit_onnx.evaluation.metrics import Score

NONE = "none"
TRAINED = [n for n, s in STAGES.items() if s.kind == "rounding" and s.needs == INPUTS]
"""Roundings that take minutes each: not among those that are measured unless asked for."""
Combination = tuple[str, str, str]
"""Names of a transform or branch, a range and a rounding."""


def known(*kinds: str) -> list[str]:
    """Names of the stages of these kinds."""
    return [name for name, stage in STAGES.items() if stage.kind in kinds]


def recipe(base: str, combination: Combination) -> str:
    """The text of a recipe file: the base's data and formats, these stages alone."""
    stages = ", ".join(f'{{ use = "{name}" }}' for name in combination if name != NONE)
    return f'extends = "{base}"\nstage = [{stages}]\n'


def table(scores: Mapping[Combination, Score], bits: str) -> str:
    """A row for each transform and range, a column for each rounding; the best in bold."""
    best = max(scores, key=lambda key: scores[key].mean)
    roundings = list(dict.fromkeys(key[2] for key in scores))
    lines = [
        f"| transform | range | {' | '.join(roundings)} |",
        f"| --- | --- |{' --- |' * len(roundings)}",
    ]
    for transform, span in dict.fromkeys(key[:2] for key in scores):
        cells = []
        for rounding in roundings:
            key = (transform, span, rounding)
            score = scores[key]
            error = "" if score.standard_error is None else f" ({score.standard_error:.1f})"
            cell = f"{score.mean:.1f}{error}"
            cells.append(f"**{cell}**" if key == best else cell)
        lines.append(f"| {transform} | {span} | {' | '.join(cells)} |")
    named = " + ".join(name for name in best if name != NONE)
    return "\n".join([*lines, "", f"Best at {bits}: {named}, {scores[best].mean:.1f} dB.", ""])


def measured(bench: Bench, bits: str, base: str, names: Sequence[Sequence[str]]) -> str:
    """The table of all combinations of `names`: transforms, ranges, roundings."""
    scores: dict[Combination, Score] = {}
    for one, span, rounding in itertools.product(*names):
        combination = (one, span, rounding)
        path = bench.work / f"{base}-{'-'.join(combination)}.toml"
        path.write_text(recipe(base, combination), encoding="utf-8")
        row = Row(path.stem, base, recipe=str(path))
        state, _ = bench.calibrated(row, bits)
        psnr = bench.measured(row, bits, state)["psnr"]
        scores[combination] = Score(psnr["mean"], psnr["standard_error"], tuple(psnr["values"]))
        bench.reporter.note(f"{row.name} {bits}: PSNR {psnr['mean']:.2f} dB")
    return table(scores, bits)


def command(given: argparse.Namespace) -> str:
    """What was asked for, less the places of files on this machine."""
    values, parser = vars(given) | {"pipeline": given.pipeline and given.pipeline.name}, options()
    said = (
        f" --{name} {shlex.quote(str(value))}"
        for name, value in values.items()
        if value != parser.get_default(name) and name not in ("work", "output")
    )
    return f"python tools/stage_table.py{''.join(said)}"


def options() -> argparse.ArgumentParser:
    """Of the command line."""
    usual = [name for name in known("rounding") if name not in TRAINED]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bits", choices=COLUMNS, default="w4a6")
    parser.add_argument("--base", choices=method_names(), default="gptq")
    parser.add_argument("--transforms", default="; ".join([NONE, *known("transform", "branch")]))
    parser.add_argument("--ranges", default="; ".join(known("range")))
    parser.add_argument("--roundings", default="; ".join(usual))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pipeline", type=Path, help="in place of the demo")
    parser.add_argument("--work", type=Path, default=Path("quality-work"))
    parser.add_argument("--output", type=Path, default=Path("stages.md"))
    return parser


def main() -> None:
    """Run the command line."""
    parser = options()
    given = parser.parse_args()
    names = []
    for what, kinds in {
        "transforms": ("transform", "branch"),
        "ranges": ("range",),
        "roundings": ("rounding",),
    }.items():
        asked = [name.strip() for name in getattr(given, what).split(";") if name.strip()]
        expected = [*([NONE] if what == "transforms" else []), *known(*kinds)]
        if unknown := [name for name in asked if name not in expected]:
            parser.error(f"unknown {what} {unknown}: expected {expected}")
        names.append(asked)
    bench = Bench(given.pipeline, given.work, given.prompts, given.seeds, [given.bits])
    text = measured(bench, given.bits, given.base, names)
    made = (
        f"Written by `{command(given)}` at commit {commit()}: {bench.name}, "
        f"{len(bench.prompts)} images; image PSNR in dB against the float model, mean (standard "
        "error).\n\n"
    )
    given.output.write_text(made + text, encoding="utf-8")
    print(f"{given.output} written")


if __name__ == "__main__":
    main()
