"""Write the table of recipes in ``docs/methods.md``: what each is made of and where it comes from."""

from __future__ import annotations

import sys

from generated_file import write_or_check
from pages import DOCS, Section

from fp4dit_onnx.calibration.methods import Method, method_by_name, use_of
from fp4dit_onnx.calibration.recipe_tables import method_names, recipe_table
from fp4dit_onnx.calibration.stages import INPUTS, MOMENTS

__all__ = ["render"]

TABLE = Section("methods.md", "recipes")
HEADS = ("recipe", "idea", "source", "stages", "looks at", "weights share a scale", "scales")
WIDEST = 65536
"""A group as large as any row."""
NEEDS = {INPUTS: "blocks, with gradients", MOMENTS: "layers' inputs", "": "weights alone"}


def _looked_at(method: Method) -> str:
    return NEEDS[next((what for what in (INPUTS, MOMENTS) if method.needs(what)), "")]


def _row(name: str) -> tuple[str, ...]:
    table, method = recipe_table(name), method_by_name(name)
    export = table.get("export", {})
    # A variant of a method, NAME-VARIANT, is on the method's page.
    pages = (DOCS / "methods" / f"{own}.md" for own in (name, name.rpartition("-")[0]))
    page = next((page for page in pages if page.exists()), None)
    group = export.get("group_size", "by target")
    grouped = "an output channel" if group == WIDEST else f"{group} inputs"
    return (
        f"[{name}](methods/{page.name})" if page else name,
        table["summary"],
        table.get("source", ""),
        ", ".join(use_of(stage) for stage in method.stages),
        _looked_at(method),
        grouped if group != "by target" else group,
        export.get("scale", "by target"),
    )


def render() -> str:
    """The text of the page."""
    rows = [HEADS, ("---",) * len(HEADS), *map(_row, method_names())]
    lines = (" | ".join(cells) for cells in rows)
    return TABLE.replaced("\n".join(f"| {line} |" for line in lines))


if __name__ == "__main__":
    sys.exit(write_or_check(TABLE.path, render(), "fp4dit_onnx/recipes"))
