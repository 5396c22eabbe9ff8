"""Measure what `fp4dit-onnx bench` compares, and write docs/performance.md.

    python tools/performance.py                                # operators: about ten minutes
    python tools/performance.py --step DIR                     # and a step of tools/xl_step.py's models
    python tools/performance.py --seconds 2 --output small.md

Everything is measured by the command itself, a case at a time, on an otherwise idle machine. What a
person wrote below "## Reading" stays.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import DOCS, write_above_reading, written_by

XL_SHAPES = ("1024x1152x1152", "1024x1152x4608", "1024x4608x1152", "1x1152x6912", "120x4096x1152")
OURS = "fp4dit "


@dataclass(frozen=True)
class Measurement:
    """One run of the command.

    Attributes:
        title: its heading.
        arguments: of ``fp4dit-onnx bench``.
    """

    title: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """As a person would type it."""
        return " ".join(("fp4dit-onnx bench", *self.arguments))


@dataclass(frozen=True)
class Goal:
    """What was asked for: `ours` at least `factor` times as fast as `peer` in the cases named.

    Attributes:
        title: of the measurement.
        cases: a name begins with one of these.
        ours: backend.
        peer: backend, or ``limit`` for a share of the instruction limit.
        factor: wanted ratio or share.
    """

    title: str
    cases: tuple[str, ...]
    ours: str
    peer: str
    factor: float


LINEARS, WIDE, ATTENTION, STEP = "Linear layers, W4A6", "W4A8", "Attention", "One denoising step"
TUNED = "Linear layers of the recipe tuned, W4A6"
THREADS, COLD, ALONE = "Threads and spinning", "Cold caches", "One denoising step, batch 1"
MANY_ROWS = ("1024x",)
GOALS = (
    Goal(LINEARS, MANY_ROWS, "amx_int8", "ort-int8", 2.0),
    Goal(LINEARS, MANY_ROWS, "amx_int8", "ort-float32", 10.0),
    Goal(LINEARS, MANY_ROWS, "amx_int8", "ort-matmulnbits", 8.0),
    Goal(LINEARS, MANY_ROWS, "amx_int8", "limit", 0.4),
    Goal(LINEARS, MANY_ROWS, "avx512_vnni", "ort-float32", 4.0),
    Goal(LINEARS, MANY_ROWS, "avx512_vnni", "limit", 0.65),
    Goal(LINEARS, MANY_ROWS, "avx2", "ort-float32", 1.5),
    Goal(LINEARS, ("1x1152x6912",), "avx512_vnni", "ort-matmulnbits", 1.0),
    Goal(LINEARS, ("1x1152x6912",), "avx512_vnni", "ort-float32", 4.0),
    Goal(TUNED, MANY_ROWS, "amx_int8", "ort-int8", 2.0),
    Goal(TUNED, MANY_ROWS, "amx_int8", "limit", 0.45),
    Goal(TUNED, MANY_ROWS, "avx512_vnni", "ort-int8", 1.15),
    Goal(TUNED, MANY_ROWS, "avx512_vnni", "limit", 0.78),
    Goal(TUNED, MANY_ROWS, "avx2", "ort-float32", 1.5),
    Goal(TUNED, ("1x1152x6912",), "avx512_vnni", "ort-matmulnbits", 1.2),
    Goal(WIDE, MANY_ROWS, "amx_int8", "ort-float32", 5.0),
    Goal(ATTENTION, ("2x",), "amx_int8", "ort-mha", 5.0),
    Goal(STEP, ("",), "avx512_vnni", "ort-float32", 4.0),
    Goal(STEP, ("",), "avx512_vnni", "ort-int8", 2.0),
    Goal(STEP, ("",), "avx512_vnni", "openvino-bf16", 2.0),
)


def measurements(step: Path | None, seconds: float) -> Iterator[Measurement]:
    """All runs, in order."""
    budget = ("--seconds", f"{seconds:g}")
    isas = _fast_isas()
    shapes = tuple(part for shape in XL_SHAPES for part in ("--shape", shape))
    yield Measurement(LINEARS, (*shapes, *isas, *budget))
    tuned = ("--scale", "int4*f32", "--group-size", "32", "--hadamard", "64")
    yield Measurement(TUNED, (*tuned, *shapes, *isas, *budget))
    yield Measurement(WIDE, ("--bits", "w4a8", "--shape", "1024x1152x4608", *isas, *budget))
    heads = ("--attention", "2x1024x16x72", "--attention", "2x4096x16x72")
    yield Measurement(ATTENTION, (*heads, *isas, *budget))
    uneven = ("--shape", "1024x1152x1152", "--shape", "1001x1152x1100", "--shape", "1x1152x6912")
    few = (*isas[:2], "--peer", "ort-float32", "--peer", "ort-int8", *budget)
    yield Measurement(THREADS, (*uneven, "--threads", "1,2,4", "--spinning", "both", *few))
    yield Measurement(COLD, (*uneven, "--cold", *few))
    if step is not None:
        model = step / "float" / "model.onnx"
        best = isas[:2]
        given = (str(step), "--float", str(model), "--tokens", "120", *best, *budget)
        yield Measurement(STEP, given)
        yield Measurement(ALONE, (*given, "--batch", "1"))


def _fast_isas() -> tuple[str, ...]:
    from fp4dit_onnx.runtime.library import supported_isas

    return tuple(part for isa in supported_isas()[:-1] for part in ("--isa", isa))


def run(measurement: Measurement) -> dict[str, Any]:
    """What the command printed.

    Raises:
        SystemExit: it failed; its own message stands above.
    """
    command = [
        sys.executable,
        "-P",
        "-m",
        "fp4dit_onnx",
        "bench",
        *measurement.arguments,
        "--json",
    ]
    print(measurement.command, file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def case_table(case: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the table of one case."""
    yield f"**{case['name']}**\n"
    settings = {(one["threads"], one["spinning"]) for one in case["outcomes"]}
    heads = (
        *(("threads", "spinning") if len(settings) > 1 else ()),
        *("backend", "median ms", "quartiles", "least - most", "GOP/s", "of limit"),
        *("x baseline", "SQNR dB"),
    )
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for outcome in case["outcomes"]:
        t = {name: 1e3 * value for name, value in outcome["seconds"].items()}
        share, ratio, sqnr = outcome["limit_share"], outcome["ratio"], outcome["sqnr_db"]
        setting = (str(outcome["threads"]), "on" if outcome["spinning"] else "off")
        cells = (
            *(setting if len(settings) > 1 else ()),
            outcome["name"],
            f"{t['median']:.3f}",
            f"{t['low']:.3f} - {t['high']:.3f}",
            f"{t['least']:.3f} - {t['most']:.3f}",
            f"{outcome['gops']:.0f}" if outcome["gops"] else "",
            f"{share:.0%}" if share else "",
            f"{ratio['median']:.2f}" if ratio else "",
            f"{sqnr:.1f}" if sqnr is not None else "",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    for name, reason in case["absent"].items():
        yield f"Absent: {name}: {reason}\n"


def goal_rows(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Lines of the table of goals."""
    yield "| case | ours | against | wanted | measured | |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for goal in GOALS:
        found = list(_measured(goal, results))
        ours = OURS + goal.ours
        if not found:
            cells = ("not measured: the machine or the run lacks it", "")
        else:
            cells = (
                ", ".join(f"{value:.2f}" for value in found),
                "met" if min(found) >= goal.factor else "missed",
            )
        case = f"{goal.title}, {'/'.join(goal.cases)}...".replace(", ...", "")
        yield f"| {case} | {ours} | {goal.peer} | {goal.factor:g} | {cells[0]} | {cells[1]} |"


def _measured(goal: Goal, results: Mapping[str, Mapping[str, Any]]) -> Iterator[float]:
    """The ratio, or share of the limit, in each case of a goal."""
    for case in results.get(goal.title, {}).get("cases", ()):
        outcomes = {outcome["name"]: outcome for outcome in case["outcomes"]}
        ours, peer = outcomes.get(OURS + goal.ours), outcomes.get(goal.peer)
        if ours is None or not case["name"].startswith(goal.cases):
            continue
        if goal.peer == "limit":
            yield float(ours["limit_share"])
        elif peer is not None:
            yield float(peer["seconds"]["median"] / ours["seconds"]["median"])


def page(runs: Sequence[tuple[Measurement, Mapping[str, Any]]]) -> str:
    """The page up to its reading."""
    machine = runs[0][1]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    limits = "; ".join(
        f"{isa} " + ", ".join(f"{kind} {value:.0f}" for kind, value in kinds.items() if value)
        for isa, kinds in machine["limits"].items()
    )
    written = (
        f"{written_by('performance.py')}: "
        f"{machine['cpu']}, {machine['threads']} threads on {machine['cores']} cores; {versions}."
    )
    lines = [
        "# Speed\n",
        written,
        "Each table is one run of one process: every round runs each backend once, in rotating order;",
        "medians and quartiles. Our times include the quantization of activations. SQNR compares the",
        "results with float64. Ratios are to ONNX Runtime in float32, the baseline.\n",
        f"Limits of the machine, a loop of the dot-product instruction on registers, GOP/s: {limits}.\n",
        "## Goals\n",
        *goal_rows({measurement.title: found for measurement, found in runs}),
        "",
    ]
    for measurement, found in runs:
        lines += [f"## {measurement.title}\n", f"`{measurement.command}`\n"]
        for case in found["cases"]:
            lines += case_table(case)
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step", type=Path, help="folder made by tools/xl_step.py")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing a case")
    parser.add_argument("--output", type=Path, default=DOCS / "performance.md")
    given = parser.parse_args(arguments)
    runs = [(m, run(m)) for m in measurements(given.step, given.seconds)]
    write_above_reading(given.output, page(runs))


if __name__ == "__main__":
    main()
