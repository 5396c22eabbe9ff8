"""``fp4dit-onnx bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fp4dit_onnx.commands.output import decibels, print_json, print_line, print_table, reporter
from fp4dit_onnx.commands.parameters import Device, Json
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.options import FORMATS as FORMATS_PANEL
from fp4dit_onnx.exporting.options import INPUT, MACHINE, OUTPUT, Option
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE, SCALE_FORMATS
from fp4dit_onnx.runtime.library import LibraryError, supported_isas
from fp4dit_onnx.spec.spec import DEFAULT_GROUP_SIZE
from fp4dit_onnx.system.devices import CPU

if TYPE_CHECKING:
    from fp4dit_onnx.benchmark import Case, Machine, Outcome, Report, Settings
    from fp4dit_onnx.runtime.providers import Placement

__all__ = ["run"]

BUSY = 0.5
"""Load average from which on other processes are mentioned."""
FAIRNESS = (
    "one process: every round runs each backend once, in rotating order, all on the same number of "
    "threads, and waits before each turn until no thread computes"
)


def _isas() -> tuple[str, ...]:
    """Those of this machine; none where the library is absent."""
    try:
        return supported_isas()
    except LibraryError:
        return ()


def _peers() -> tuple[str, ...]:
    from fp4dit_onnx.benchmark import PEERS

    return tuple(dict.fromkeys(one.name for table in PEERS.values() for one in table))


def run(
    bundle: Annotated[
        Path | None,
        Option(
            "Measure one denoising step of this bundle; without it, single operators.",
            INPUT,
            unit="BUNDLE",
            positional=True,
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        Option(
            "Linear layer MxKxN: rows, inputs, outputs; by default PixArt-XL's. Repeatable.",
            INPUT,
            unit="MxKxN",
        ),
    ] = None,
    attention: Annotated[
        list[str] | None,
        Option(
            "Attention BxSxHxD: batch, tokens, heads, channels per head. Repeatable.",
            INPUT,
            unit="BxSxHxD",
        ),
    ] = None,
    float_model: Annotated[
        Path | None,
        Option("The bundle's float model, an ONNX file.", INPUT, unit="FILE", flags=("--float",)),
    ] = None,
    batch: Annotated[int, Option("Batch size of a denoising step.", INPUT, unit="ROWS")] = 2,
    tokens: Annotated[
        int | None,
        Option("Text tokens of a denoising step; by default the bundle's.", INPUT, unit="TOKENS"),
    ] = None,
    bits: Annotated[
        str, Option("Bits of single operators, as for export.", FORMATS_PANEL, unit="BITS")
    ] = "w4a6",
    weight_format: Annotated[
        str | None,
        Option(
            "Weight format of linear layers; by default that of the bits.",
            FORMATS_PANEL,
            unit="FORMAT",
            choices=FORMATS,
        ),
    ] = None,
    activation_format: Annotated[
        str | None,
        Option(
            "Activation format; by default that of the bits.",
            FORMATS_PANEL,
            unit="FORMAT",
            choices=FORMATS,
        ),
    ] = None,
    group_size: Annotated[
        int, Option("Input channels that share one weight scale.", FORMATS_PANEL, unit="CHANNELS")
    ] = DEFAULT_GROUP_SIZE,
    scale: Annotated[
        str,
        Option(
            "Format of the weights' scales.", FORMATS_PANEL, unit="FORMAT", choices=SCALE_FORMATS
        ),
    ] = DEFAULT_SCALE,
    activation_group_size: Annotated[
        int | None,
        Option(
            "Inputs of a row that share a scale; by default all.", FORMATS_PANEL, unit="CHANNELS"
        ),
    ] = None,
    hadamard: Annotated[
        int | None,
        Option(
            "Rotate inputs in blocks of this size, a power of two; by default not.",
            FORMATS_PANEL,
            unit="CHANNELS",
        ),
    ] = None,
    device: Device = CPU,
    threads: Annotated[
        int | None,
        Option("Threads of every backend; by default all cores.", MACHINE, unit="THREADS", min=1),
    ] = None,
    seconds: Annotated[
        float, Option("Time to measure each case for.", MACHINE, unit="SECONDS")
    ] = 10.0,
    rounds: Annotated[
        int | None,
        Option("Rounds to measure each case for, in place of --seconds.", MACHINE, unit="ROUNDS"),
    ] = None,
    isa: Annotated[
        list[str] | None,
        Option(
            "Instruction set of our kernels; by default all of this machine. Repeatable.",
            MACHINE,
            unit="ISA",
            choices=_isas,
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        Option(
            "Other backend to measure; by default all. Repeatable.",
            MACHINE,
            unit="PEER",
            choices=_peers,
        ),
    ] = None,
    json: Json = False,
    dry_run: Annotated[
        bool, Option("Only list the backends that would run, and those that are absent.", OUTPUT)
    ] = False,
) -> None:
    """Measure speed against other libraries, interleaved in one run."""
    from fp4dit_onnx.benchmark import Settings, choose
    from fp4dit_onnx.benchmark.requests import Formats, operator_cases, step_case
    from fp4dit_onnx.runtime.providers import place
    from fp4dit_onnx.system.resources import usable_cores

    placed = place(device, reporter().note)
    if isa and not placed.on_cpu:
        raise UsageError(f"--isa is one of the CPU, and --device is {placed.name}: leave one out")
    if bundle is None and float_model is not None:
        raise UsageError("--float is the float model of a bundle: give the bundle too")
    count = usable_cores() if threads is None else threads
    settings = Settings(count, seconds, rounds, placed=placed)
    formats = Formats(
        bits,
        weight_format,
        activation_format,
        group_size,
        scale,
        activation_group_size,
        hadamard,
    )
    cases: list[Case] = []
    if bundle is not None:
        cases.append(step_case(bundle, float_model, batch, tokens))
    cases += operator_cases(shape or (), attention or (), formats, default=bundle is None)
    peers = None if peer is None else choose("peer", peer, _peers())
    supported = supported_isas() if placed.on_cpu else (placed.name,)
    isas = choose("instruction set", isa or supported, supported)
    if dry_run:
        _print_plan(cases, isas, peers, placed, json=json)
        return
    _measure(cases, isas, peers, settings, json=json)


def _print_plan(
    cases: Sequence[Case],
    isas: Sequence[str],
    peers: Sequence[str] | None,
    placed: Placement,
    *,
    json: bool,
) -> None:
    """The backends that would run and those that cannot, as far as known without loading them."""
    from fp4dit_onnx.benchmark import backends

    plans: list[dict[str, Any]] = []
    for case in cases:
        everyone = backends(case.kind, isas, peers, placed)
        absent = {one.name: reason for one in everyone if (reason := one.why_absent())}
        present = {one.name: one.about for one in everyone if one.name not in absent}
        plans.append({"kind": case.kind, "name": case.name, "runs": present, "absent": absent})
    if json:
        print_json({"cases": plans})
        return
    for plan in plans:
        rows = [("", *row) for row in plan["runs"].items()]
        rows += [("absent", *row) for row in plan["absent"].items()]
        print_table(f"{plan['kind']} {plan['name']}", ("", "backend", "what"), rows)


def _measure(
    cases: Sequence[Case],
    isas: Sequence[str],
    peers: Sequence[str] | None,
    settings: Settings,
    *,
    json: bool,
) -> None:
    from fp4dit_onnx.benchmark import BASELINES, Machine, backends, run_case

    progress, own = reporter(), isas if settings.placed.on_cpu else ()
    with progress.stage(
        "measuring the limits of the machine", len(own), "instruction sets"
    ) as advance:
        machine = Machine.measure(own, settings.threads)
        advance(len(own))
    if not json:
        _print_machine(machine)
    settings, reports = replace(settings, limits=machine.limits), []
    for case in cases:
        everyone = backends(case.kind, isas, peers, settings.placed)
        reports.append(run_case(case, everyone, BASELINES[case.kind], settings, progress))
        if not json:
            _print_report(reports[-1])
    if json:
        print_json({"machine": machine.to_json(), "cases": [r.to_json() for r in reports]})
    else:
        print_line(FAIRNESS)
    if not all(report.outcomes for report in reports):
        raise typer.Exit(1)


def _print_machine(machine: Machine) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    print_line(f"{machine.cpu}, {machine.threads} threads on {machine.cores} cores; {versions}")
    if machine.load is not None and machine.load >= BUSY:
        print_line(
            f"load average {machine.load:.1f}: other processes use the cores, so times will scatter"
        )
    if not machine.limits:
        return
    kinds = list(dict.fromkeys(kind for row in machine.limits.values() for kind in row))
    rows = [
        (isa, *(_number(limits[kind]) for kind in kinds)) for isa, limits in machine.limits.items()
    ]
    columns = ("dot product on registers", *(f">{kind}" for kind in kinds))
    print_table("Limits, GOP/s", columns, rows)


def _print_report(report: Report) -> None:
    columns = (
        "backend",
        ">median ms",
        ">quartiles",
        ">rounds",
        ">GOP/s",
        ">of limit",
        f">x {report.baseline}",
        ">SQNR",
        "what",
    )
    rows = [_row(outcome) for outcome in report.outcomes]
    print_table(f"{report.kind} {report.name}", columns, rows)
    for name, reason in report.absent.items():
        print_line(f"absent: {name}: {reason}")


def _row(outcome: Outcome) -> tuple[object, ...]:
    time, ratio, share = outcome.seconds, outcome.ratio, outcome.limit_share
    return (
        outcome.name,
        f"{1e3 * time.median:.3f}",
        f"{1e3 * time.low:.3f} - {1e3 * time.high:.3f}",
        outcome.rounds,
        _number(outcome.gops),
        "-" if share is None else f"{share:.0%}",
        "-" if ratio is None else f"{ratio.median:.2f}",
        decibels(outcome.sqnr_db),
        outcome.about,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
