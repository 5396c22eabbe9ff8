"""``fp4dit-onnx verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from fp4dit_onnx.commands.output import print_json, print_line, print_table, reporter
from fp4dit_onnx.commands.parameters import BundleFolder, Device, Json
from fp4dit_onnx.exporting.options import INPUT, Option
from fp4dit_onnx.runtime.providers import place
from fp4dit_onnx.system.devices import CPU
from fp4dit_onnx.verification.verify import verify

__all__ = ["run"]


def run(
    bundle: BundleFolder,
    quick: Annotated[bool, Option("Fewer batches, text lengths and timesteps.", INPUT)] = False,
    device: Device = CPU,
    json: Json = False,
) -> None:
    """Check that a bundle computes what it should; exit code 1 if not."""
    placed = place(device, reporter().note)
    result = verify(bundle=bundle, quick=quick, device=placed, reporter=reporter())
    if json:
        print_json(result.to_json())
    else:
        rows = [
            ("ok" if check.ok else "FAILED", check.name, check.found, check.bound, check.detail)
            for check in result.checks
        ]
        print_table(f"{bundle}", ("", "check", ">found", ">bound", "detail"), rows)
        failed = sum(not check.ok for check in result.checks)
        print_line(f"{len(rows) - failed} of {len(rows)} checks passed")
    if not result.ok:
        raise typer.Exit(1)
