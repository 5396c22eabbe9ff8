"""``fp4dit-onnx doctor``."""

from __future__ import annotations

import typer

from fp4dit_onnx.commands.output import print_json, print_line, print_table
from fp4dit_onnx.commands.parameters import Json
from fp4dit_onnx.doctor import Finding, diagnose

__all__ = ["run"]


def run(json: Json = False) -> None:
    """Check the installation; name cause and remedy of what is broken."""
    diagnosis = diagnose()
    if json:
        print_json(diagnosis.to_json())
    else:
        rows = [(_word(f), f.name, f.found) for f in diagnosis.findings]
        print_table("Installation", ("", "what", "found"), rows)
        for finding in diagnosis.findings:
            if not finding.ok:
                print_line(f"{finding.name}: {finding.cause}")
                print_line(f"    cure: {finding.cure}")
    if not diagnosis.ok:
        raise typer.Exit(1)


def _word(finding: Finding) -> str:
    if finding.ok:
        return "ok"
    return "BROKEN" if finding.needed else "absent"
