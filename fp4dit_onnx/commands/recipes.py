"""``fp4dit-onnx recipes``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import tomli_w

from fp4dit_onnx.calibration.methods import method_by_name, use_of
from fp4dit_onnx.calibration.recipe_tables import method_names, recipe_table
from fp4dit_onnx.commands.output import print_json, print_line, print_table
from fp4dit_onnx.commands.parameters import Json
from fp4dit_onnx.exporting.options import INPUT, Option

__all__ = ["run"]


def run(
    name: Annotated[
        str | None,
        Option(
            "A recipe to print as a file that --recipe takes, what it extends included.",
            INPUT,
            unit="NAME",
            choices=method_names,
            positional=True,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the recipes: what each does, needs and costs."""
    if name is not None:
        _print(recipe_table(name), json=json)
        return
    rows = [_row(name) for name in method_names()]
    if json:
        print_json(rows)
        return
    print_table(
        "Recipes: choose with --method NAME, or --recipe FILE for your own",
        ("method", "stages", "needs", "presets"),
        [(r["name"], " > ".join(r["stages"]), r["needs"], ", ".join(r["presets"])) for r in rows],
    )
    for row in rows:
        cost = f" Cost: {row['cost']}." if row["cost"] else ""
        source = f" ({row['source']})" if row["source"] else ""
        print_line(f"{row['name']}: {row['summary']}{source}.{cost}")


def _print(table: Mapping[str, Any], *, json: bool) -> None:
    if json:
        print_json(table)
        return
    for line in tomli_w.dumps(table).splitlines():
        print_line(line)


def _row(name: str) -> dict[str, Any]:
    table, method = recipe_table(name), method_by_name(name)
    return {
        "name": name,
        "stages": [use_of(stage) for stage in method.stages],
        "grid": method.grid,
        "needs": "prompts" if method.needs_data else "weights only",
        "presets": list(method.presets),
        **{key: table.get(key) for key in ("summary", "source", "cost")},
    }
