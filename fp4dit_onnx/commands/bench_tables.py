"""What ``fp4dit-onnx bench`` prints for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fp4dit_onnx.commands.output import decibels, print_line, print_table

if TYPE_CHECKING:
    from fp4dit_onnx.benchmark import ImageOutcome, ImageReport, Machine, Outcome, Report

__all__ = ["print_machines", "print_report"]

BUSY = 0.5
"""Load average from which on other processes are mentioned."""
FAIRNESS = (
    "one process: every round runs each backend once, in rotating order, all on the same number of "
    "threads, and waits before each turn until no thread computes"
)
IMAGES = (
    "a process for each turn, which loads, makes the image and ends; every round takes each backend "
    "once, in rotating order, all on the same number of threads"
)


def print_machines(machines: Sequence[Machine]) -> None:
    """CPU, versions and load, and the limits of its instruction sets for each number of threads."""
    machine = machines[0]
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    threads = ", ".join(str(one.threads) for one in machines)
    print_line(f"{machine.cpu}, {threads} threads on {machine.cores} cores; {versions}")
    if machine.load is not None and machine.load >= BUSY:
        print_line(
            f"load average {machine.load:.1f}: other processes use the cores, so times will scatter"
        )
    if not machine.limits:
        return
    kinds = list(dict.fromkeys(kind for row in machine.limits.values() for kind in row))
    rows = [
        (isa, one.threads, *(_number(limits[kind]) for kind in kinds))
        for one in machines
        for isa, limits in one.limits.items()
    ]
    columns = ("dot product on registers", ">threads", *(f">{kind}" for kind in kinds))
    print_table("Limits, GOP/s", columns, rows)


def print_report(report: Report | ImageReport) -> None:
    """The table of a case, who was absent, and how turns were taken."""
    from fp4dit_onnx.benchmark import ImageReport

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    if isinstance(report, ImageReport):
        title, turns = f"{report.kind} {report.name}: {report.prompt}", IMAGES
        stages = report.outcomes[0].stages if report.outcomes else ()
        columns = _image_columns(tuple(stages), report.baseline)
        rows = [_image_row(outcome) for outcome in report.outcomes]
    else:
        title, turns = f"{report.kind} {report.name}", FAIRNESS
        columns, rows = _columns(report.baseline), [_row(outcome) for outcome in report.outcomes]
    print_table(title, columns, rows)
    for name, reason in report.absent.items():
        print_line(f"absent: {name}: {reason}")
    print_line(turns)


def _columns(baseline: str) -> tuple[str, ...]:
    return (
        "backend",
        ">threads",
        "spinning",
        ">median ms",
        ">quartiles",
        ">least - most",
        ">rounds",
        ">GOP/s",
        ">of limit",
        f">x {baseline}",
        ">SQNR",
        "what",
    )


def _image_columns(stages: tuple[str, ...], baseline: str) -> tuple[str, ...]:
    return (
        "backend",
        ">threads",
        ">load s",
        *(f">{stage} s" for stage in stages),
        ">a step s",
        ">image s",
        ">quartiles",
        ">least - most",
        ">rounds",
        f">x {baseline}",
        ">peak MB",
        ">of its memory",
        ">PSNR",
        "what",
    )


def _row(outcome: Outcome) -> tuple[object, ...]:
    time, ratio, share = outcome.seconds, outcome.ratio, outcome.limit_share
    return (
        outcome.name,
        outcome.threads,
        "on" if outcome.spinning else "off",
        f"{1e3 * time.median:.3f}",
        f"{1e3 * time.low:.3f} - {1e3 * time.high:.3f}",
        " - ".join(f"{1e3 * end:.3f}" for end in time.ends),
        outcome.rounds,
        _number(outcome.gops),
        "-" if share is None else f"{share:.0%}",
        "-" if ratio is None else f"{ratio.median:.2f}",
        decibels(outcome.sqnr_db),
        outcome.about,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _image_row(outcome: ImageOutcome) -> tuple[object, ...]:
    time, ratio, peak, share = (
        outcome.seconds,
        outcome.ratio,
        outcome.peak_bytes,
        outcome.memory_ratio,
    )
    return (
        outcome.name,
        outcome.threads,
        f"{outcome.load.median:.2f}",
        *(f"{stage.median:.2f}" for stage in outcome.stages.values()),
        f"{outcome.step.median:.3f}",
        f"{time.median:.2f}",
        f"{time.low:.2f} - {time.high:.2f}",
        " - ".join(f"{end:.2f}" for end in time.ends),
        outcome.rounds,
        "-" if ratio is None else f"{ratio.median:.2f}",
        "-" if peak is None else f"{peak.median / 1e6:.0f}",
        "-" if share is None else f"{share:.0%}",
        decibels(outcome.psnr_db),
        outcome.about,
    )
