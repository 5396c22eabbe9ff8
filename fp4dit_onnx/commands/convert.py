"""``fp4dit-onnx convert``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fp4dit_onnx.bundle.bundle import REPORT, Bundle
from fp4dit_onnx.commands.output import print_json, print_line, print_table, reporter
from fp4dit_onnx.commands.parameters import Json, Overwrite
from fp4dit_onnx.errors import MissingExtraError, UsageError
from fp4dit_onnx.exporting.options import FORMATS, INPUT, OUTPUT, Option
from fp4dit_onnx.system.texts import size

if TYPE_CHECKING:
    from fp4dit_onnx.targets import Conversion, Target

__all__ = ["run"]


def _targets() -> Iterable[str]:
    from fp4dit_onnx.targets import TARGETS

    return (name for name, target in TARGETS.items() if target.rewrite)


def run(
    bundle: Annotated[
        Path | None, Option("Folder made by export.", INPUT, unit="BUNDLE", positional=True)
    ] = None,
    output: Annotated[
        Path | None,
        Option("Folder of the bundle to write.", OUTPUT, unit="BUNDLE", flags=("--output", "-o")),
    ] = None,
    target: Annotated[
        str,
        Option(
            "What the graphs are made of; see --list.",
            FORMATS,
            unit="TARGET",
            choices=_targets,
        ),
    ] = "inline",
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, Option("Only check the bundle and list what would be rewritten.", OUTPUT)
    ] = False,
    report: Annotated[bool, Option("Also write report.html; needs [report].", OUTPUT)] = True,
    show: Annotated[
        bool,
        Option(
            "List the targets, and which installed runtimes load each.", OUTPUT, flags=("--list",)
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Write a bundle for runtimes without local functions, or with standard types only."""
    from fp4dit_onnx.targets import convert, rewritable, target_by_name

    if show:
        _list(json=json)
        return
    if bundle is None:
        raise UsageError("no bundle: expected a folder made by export, or --list")
    chosen = target_by_name(target)
    if dry_run:
        _show_plan(bundle, chosen, rewritable(bundle, chosen), json=json)
        return
    if output is None:
        raise UsageError("no output folder: expected where to write the bundle; give -o DIR")
    made = convert(bundle, output, chosen, overwrite=overwrite, reporter=reporter())
    _show_result(made, chosen, json=json)
    if report:
        _add_report(made.bundle)


def _add_report(folder: Path) -> None:
    """What is known of the new bundle; nothing is measured."""
    from fp4dit_onnx.report.writing import add_report

    try:
        add_report(Bundle.open(folder), note=reporter().note)
    except MissingExtraError as error:
        reporter().note(f"no {REPORT} in {folder}: {error}")


def _list(*, json: bool) -> None:
    from fp4dit_onnx.targets import TARGETS
    from fp4dit_onnx.targets.capability import capabilities

    loads = capabilities()
    summaries = {name: target.summary for name, target in TARGETS.items()}
    if json:
        print_json({"targets": summaries, "runtimes": loads})
        return
    rows = [
        (name, text, ", ".join(r for r, whys in loads.items() if not whys[name]) or "none here")
        for name, text in summaries.items()
    ]
    print_table("Targets", ("target", "made of", "loaded by"), rows)
    for runtime, whys in loads.items():
        for name, why in whys.items():
            if why:
                print_line(f"{runtime} does not load {name}: {why}")


def _show_plan(bundle: Path, target: Target, models: Mapping[str, int], *, json: bool) -> None:
    if json:
        print_json({"target": target.name, "bytes_before": models})
        return
    print_table(
        "To be rewritten (dry run: nothing is written)",
        ("model", ">size"),
        [(name, size(count)) for name, count in models.items()],
    )
    print_line(f"{bundle} can be converted to {target.name}: {target.summary}")


def _show_result(made: Conversion, target: Target, *, json: bool) -> None:
    if json:
        print_json(
            {
                "bundle": str(made.bundle),
                "target": target.name,
                "bytes_before": made.bytes_before,
                "bytes_after": made.bytes_after,
                "converted": made.manifest.converted,
            }
        )
        return
    rows = [
        (name, size(made.bytes_before[name]), size(made.bytes_after[name]))
        for name in made.bytes_before
    ]
    print_table("Rewritten models", ("model", ">before", ">after"), rows)
    print_line(f"{made.bundle} written for the target {target.name}: {target.summary}")
