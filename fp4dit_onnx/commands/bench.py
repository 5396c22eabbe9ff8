"""``fp4dit-onnx bench``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fp4dit_onnx.commands.bench_tables import print_machines, print_report
from fp4dit_onnx.commands.output import print_json, print_table, reporter
from fp4dit_onnx.commands.parameters import Device, Json
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.options import FORMATS as FORMATS_PANEL
from fp4dit_onnx.exporting.options import INPUT, MACHINE, OUTPUT, SAMPLING, Option
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE, SCALE_FORMATS
from fp4dit_onnx.runtime.library import LibraryError, supported_isas
from fp4dit_onnx.spec.spec import DEFAULT_GROUP_SIZE
from fp4dit_onnx.system.devices import CPU

if TYPE_CHECKING:
    from fp4dit_onnx.benchmark import Case, ImageReport, Report, Settings
    from fp4dit_onnx.benchmark.requests import ImageRequest
    from fp4dit_onnx.runtime.providers import Placement

__all__ = ["run"]


SPINNING = {"on": (True,), "off": (False,), "both": (True, False)}
"""Choice -> settings that are measured, one after the other."""


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
    batch: Annotated[
        int | None, Option("Batch size of a denoising step; by default 2.", INPUT, unit="ROWS")
    ] = None,
    tokens: Annotated[
        int | None,
        Option("Text tokens of a denoising step; by default the bundle's.", INPUT, unit="TOKENS"),
    ] = None,
    end_to_end: Annotated[
        bool,
        Option(
            "Measure a whole image by the bundle, from prompt to PNG, in place of a step: seconds "
            "by stage, load time and peak memory, each backend in a process of its own.",
            INPUT,
        ),
    ] = False,
    float_bundle: Annotated[
        Path | None,
        Option(
            "For --end-to-end: the same pipeline exported with --rule '*=none' "
            "--text-encoder-bits none --attention-format none, for ONNX Runtime and OpenVINO.",
            INPUT,
            unit="BUNDLE",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        Option(
            "For --end-to-end: the diffusers pipeline of the bundle, for torch.", INPUT, unit="DIR"
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        Option("For --end-to-end: prompt, or class; by default an example.", INPUT, unit="TEXT"),
    ] = None,
    steps: Annotated[
        int | None,
        Option("For --end-to-end: by default the bundle's.", SAMPLING, unit="STEPS"),
    ] = None,
    guidance: Annotated[
        float | None,
        Option("For --end-to-end: by default the bundle's; 1 for none.", SAMPLING, unit="SCALE"),
    ] = None,
    height: Annotated[
        int | None,
        Option("For --end-to-end: by default the bundle's.", SAMPLING, unit="PIXELS"),
    ] = None,
    width: Annotated[
        int | None,
        Option("For --end-to-end: by default the bundle's.", SAMPLING, unit="PIXELS"),
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
        str | None,
        Option(
            "Threads of every backend, or several numbers with commas, such as 1,2,4: a row for "
            "each; by default all cores.",
            MACHINE,
            unit="THREADS",
        ),
    ] = None,
    spinning: Annotated[
        str,
        Option(
            "Whether threads of ONNX Runtime wait busily for the next task of a run.",
            MACHINE,
            choices=SPINNING,
        ),
    ] = "on",
    cold: Annotated[
        bool,
        Option(
            "Empty the CPU's caches before every call, by writing to buffers twice as large; of "
            "images, drop the pages of all files before every load.",
            MACHINE,
        ),
    ] = False,
    seconds: Annotated[
        float, Option("Time to measure each case for.", MACHINE, unit="SECONDS")
    ] = 10.0,
    rounds: Annotated[
        int | None,
        Option(
            "Rounds to measure each case for, in place of --seconds; of images by default 3.",
            MACHINE,
            unit="ROUNDS",
        ),
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
    from fp4dit_onnx.benchmark.requests import Formats, ImageRequest, operator_cases, thread_counts
    from fp4dit_onnx.runtime.providers import place

    placed = place(device, reporter().note)
    if isa and not placed.on_cpu:
        raise UsageError(f"--isa is one of the CPU, and --device is {placed.name}: leave one out")
    image = ImageRequest(float_bundle, model, prompt, steps, guidance, height, width)
    step = {"--float": float_model, "--batch": batch, "--tokens": tokens}
    _check_options(bundle, step, image, end_to_end=end_to_end)
    choose("spinning", (spinning,), tuple(SPINNING))
    if end_to_end and spinning != "on":
        raise UsageError("--spinning is an option of operators and steps: leave it out")
    settings = [
        Settings(count, seconds, rounds, placed=placed, spinning=spins, cold=cold)
        for count in thread_counts(threads)
        for spins in SPINNING[spinning]
    ]
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
        cases.append(_bundle_case(bundle, step, image if end_to_end else None, placed))
    cases += operator_cases(shape or (), attention or (), formats, default=bundle is None)
    peers = None if peer is None else choose("peer", peer, _peers())
    supported = supported_isas() if placed.on_cpu else (placed.name,)
    isas = choose("instruction set", isa or supported, supported)
    if dry_run:
        _print_plan(cases, isas, peers, placed, json=json)
        return
    _measure(cases, isas, peers, settings, json=json)


def _check_options(
    bundle: Path | None, step: Mapping[str, Any], image: ImageRequest, *, end_to_end: bool
) -> None:
    """Refuse options of what is not measured."""
    images = {f"--{name.replace('_', '-')}": value for name, value in vars(image).items()}
    wrong, what = (step, "a single step") if end_to_end else (images, "--end-to-end")
    given = [name for name, value in wrong.items() if value is not None]
    if given:
        raise UsageError(f"{given[0]} is an option of {what}: leave it out, or measure that")
    if bundle is None and (end_to_end or step["--float"] is not None):
        name = "--end-to-end" if end_to_end else "--float"
        raise UsageError(f"{name} without a bundle: expected  bench BUNDLE {name}")


def _bundle_case(
    bundle: Path, step: Mapping[str, Any], image: ImageRequest | None, placed: Placement
) -> Case:
    from fp4dit_onnx.benchmark.requests import image_case, step_case

    if image is not None:
        return image_case(bundle, image, placed.name)
    batch = 2 if step["--batch"] is None else step["--batch"]
    return step_case(bundle, step["--float"], batch, step["--tokens"])


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
    settings: Sequence[Settings],
    *,
    json: bool,
) -> None:
    """Measure all cases with each of the settings, which have one device, and print the results."""
    from fp4dit_onnx.benchmark import (
        BASELINES,
        ImageCase,
        Machine,
        backends,
        run_case,
        run_image,
        together,
    )

    progress, placed = reporter(), settings[0].placed
    own, counts = (isas if placed.on_cpu else ()), dict.fromkeys(one.threads for one in settings)
    with progress.stage(
        "measuring the limits of the machine", len(counts), "numbers of threads"
    ) as advance:
        machines = {}
        for count in counts:
            machines[count] = Machine.measure(own, count)
            advance(1)
    if not json:
        print_machines(list(machines.values()))
    reports: list[Report | ImageReport] = []
    for case in cases:
        everyone, baseline = backends(case.kind, isas, peers, placed), BASELINES[case.kind]
        parts: list[Any] = []
        for one in settings:
            limited = replace(one, limits=machines[one.threads].limits)
            if isinstance(case, ImageCase):
                parts.append(run_image(case, everyone, baseline, limited, progress))
            else:
                parts.append(run_case(case, everyone, baseline, limited, progress))
        reports.append(together(parts))
        if not json:
            print_report(reports[-1])
    if json:
        print_json(
            {
                "machine": machines[settings[0].threads].to_json(),
                "cases": [r.to_json() for r in reports],
            }
        )
    if not all(report.outcomes for report in reports):
        raise typer.Exit(1)
