"""Heat maps of layers' errors: block by linear, and a strip of the layers outside of blocks."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Rectangle

from fp4dit_onnx.report.layer_names import Blocks
from fp4dit_onnx.report.plots import WIDTH, Figure, put_text
from fp4dit_onnx.report.svg import CLASSES, COLOURS, HEAT, HEAT_INK, canvas, inline

__all__ = ["Legend", "class_edges", "heat_map", "legend_of", "strip"]

CELL_WIDTH, CELL_HEIGHT = 29, 19
STEPS_DB = (1, 2, 3, 5, 10, 20, 50, 100)
"""Widths that a class of colour may have: less than 1 dB is no difference to see."""


@dataclass(frozen=True)
class Legend:
    """A class of a heat map.

    Attributes:
        colour: CSS variable of the cells.
        ink: of the text in them.
        label: the values it holds.
    """

    colour: str
    ink: str
    label: str


def heat_map(
    name: str, title: str, blocks: Blocks, values: Mapping[str, float], edges: Sequence[float]
) -> Figure:
    """SQNR by block (rows) and linear (columns); cells hold the number in dB.

    Args:
        name: prefix of ids.
        title: above the figure.
        blocks: what stands where.
        values: by layer's torch name; layers without one leave their cell empty.
        edges: of the classes of colour.
    """
    rows, columns = blocks.numbers, blocks.linears
    cells = {
        (r, c): values[layer]
        for r, number in enumerate(rows)
        for c, linear in enumerate(columns)
        if (layer := blocks.layer(number, linear)) in values
    }
    (r, c), worst = min(cells.items(), key=lambda item: item[1])
    finding = (
        f"{worst:.1f} to {max(cells.values()):.1f} dB over {len(rows)} blocks and "
        f"{len(columns)} linears; lowest in {columns[c]} of block {rows[r]}"
    )
    svg = _cells(name, f"{title}: {finding}", [str(n) for n in rows], columns, cells, edges)
    return Figure(title, finding, svg, wide=len(columns) * CELL_WIDTH > WIDTH)


def _cells(
    name: str,
    finding: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[int, int], float],
    edges: Sequence[float],
) -> Markup:
    left = 10 + 6.4 * max(map(len, rows))
    top = 14 + 6.0 * max(map(len, columns))
    width, height = left + CELL_WIDTH * len(columns) + 2, top + CELL_HEIGHT * len(rows) + 2
    with canvas(width, height) as drawing:
        axes = _plane(drawing, width, height)
        for c, column in enumerate(columns):
            x = left + (c + 0.5) * CELL_WIDTH
            put_text(axes, x, top - 5, column, "muted", rotation=90, ha="center", va="bottom")
        for r, row in enumerate(rows):
            y = top + (r + 0.5) * CELL_HEIGHT
            put_text(axes, left - 6, y, row, "muted", ha="right", va="center_baseline")
        for (r, c), value in cells.items():
            _cell(axes, left + c * CELL_WIDTH, top + r * CELL_HEIGHT, value, edges)
        return inline(drawing, name, finding)


def _plane(drawing: Drawing, width: float, height: float) -> Axes:
    """Axes without marks, in pixels from the upper left corner."""
    axes = drawing.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return axes


def _cell(axes: Axes, x: float, y: float, value: float, edges: Sequence[float]) -> None:
    shade = min(max(bisect_right(edges, value) - 1, 0), CLASSES - 1)
    inner = (CELL_WIDTH - 1, CELL_HEIGHT - 1)
    colour = COLOURS[HEAT[shade]]
    axes.add_patch(Rectangle((x + 0.5, y + 0.5), *inner, facecolor=colour, linewidth=0))
    middle = (x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2)
    put_text(axes, *middle, f"{value:.0f}", HEAT_INK[shade], ha="center", va="center_baseline")


def strip(
    name: str,
    title: str,
    layers: Sequence[str],
    values: Mapping[str, float],
    edges: Sequence[float],
) -> Figure:
    """SQNR of layers that stand in no block: a row each."""
    known = [layer for layer in layers if layer in values]
    worst = min(known, key=lambda layer: values[layer])
    count = "1 layer" if len(known) == 1 else f"{len(known)} layers"
    finding = (
        f"{count} outside of blocks: lowest {values[worst]:.1f} dB in {worst}, highest "
        f"{max(values[layer] for layer in known):.1f} dB"
    )
    width = CELL_WIDTH + 10 + 6.1 * max(map(len, known))
    height = CELL_HEIGHT * len(known) + 2
    with canvas(width, height) as drawing:
        axes = _plane(drawing, width, height)
        for r, layer in enumerate(known):
            _cell(axes, 0, r * CELL_HEIGHT, values[layer], edges)
            y = (r + 0.5) * CELL_HEIGHT
            put_text(axes, CELL_WIDTH + 7, y, layer, "muted", va="center_baseline")
        return Figure(title, finding, inline(drawing, name, finding))


def legend_of(edges: Sequence[float]) -> list[Legend]:
    """The classes between `edges`, from the lowest."""
    pairs = itertools.pairwise(edges)
    labels = [f"{low:g} to {high:g} dB" for low, high in pairs]
    return [Legend(*one) for one in zip(HEAT, HEAT_INK, labels, strict=True)]


def class_edges(values: Sequence[float]) -> list[float]:
    """Edges of `CLASSES` equal classes in round numbers that hold all values, ascending.

    The largest value lies in the last class: where all are alike, none looks bad.
    """
    low, high = min(values), max(values)
    for step in STEPS_DB:
        first = step * (math.ceil(high / step) - CLASSES)
        if first <= low:
            return [float(first + i * step) for i in range(CLASSES + 1)]
    return [low + (high - low) * i / CLASSES for i in range(CLASSES + 1)]
