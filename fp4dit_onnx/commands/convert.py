"""``fp4dit-onnx convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fp4dit_onnx.commands.output import print_json, print_line, print_table, reporter, size

__all__ = ["run"]


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder made by export.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle to write.")],
    target: Annotated[
        str,
        typer.Option(
            help="inline: standard operators in place of ours and their bodies. standard: FLOAT4E2M1 "
            "weights and FLOAT8 activations of opset 23."
        ),
    ] = "inline",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is there.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a bundle for runtimes without local functions, or with standard types only."""
    from fp4dit_onnx.targets import convert, target_by_name

    chosen = target_by_name(target)
    made = convert(bundle, output, chosen, overwrite=overwrite, reporter=reporter())
    if json:
        print_json(
            {
                "bundle": str(made.bundle),
                "target": chosen.name,
                "bytes_before": made.bytes_before,
                "bytes_after": made.bytes_after,
                "converted": made.manifest["converted"],
            }
        )
        return
    rows = [
        (name, size(made.bytes_before[name]), size(made.bytes_after[name]))
        for name in made.bytes_before
    ]
    print_table(chosen.summary, ("model", ">before", ">after"), rows)
    print_line(f"{made.bundle} written")
