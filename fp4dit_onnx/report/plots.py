"""The figures of a report: each with its finding in words and its numbers as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from fp4dit_onnx.evaluation.metrics import Score
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.report.data import Histogram
from fp4dit_onnx.report.svg import (
    COLOURS,
    SERIES,
    canvas,
    inline,
    quiet_axes,
)
from fp4dit_onnx.report.tables import Cell, Table, table

__all__ = ["WIDTH", "Figure", "bars", "histogram", "latents", "put_text", "scatter"]

WIDTH = 340
"""CSS pixels: a phone shows a figure in the size in which it was drawn."""
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))
MARKERS = ("o", "s", "^")
MOST_LINES = 17
"""Values of a format's grid that are drawn as lines across; finer grids are ticks at the top."""
PERCENT = "\u00a0%"


@dataclass(frozen=True)
class Figure:
    """A drawing and what stands beside it.

    Attributes:
        title: above it.
        finding: what it shows, in a sentence; also its description for screen readers.
        svg: the drawing.
        columns: headings of its numbers; empty where the page has them elsewhere.
        rows: its numbers.
        wide: too wide for a phone, which scrolls it.
    """

    title: str
    finding: str
    svg: Markup
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    wide: bool = False

    @property
    def table(self) -> Table:
        """The numbers, all columns but the first aligned to the right."""
        columns = [name if i == 0 else f">{name}" for i, name in enumerate(self.columns)]
        rows = ((Cell(row[0]), *(Cell(c, number=True) for c in row[1:])) for row in self.rows)
        return table(self.title, columns, rows)


def latents(name: str, curves: Mapping[str, Sequence[Score]]) -> Figure:
    """SQNR of the latents over the sampler's steps, a line per bundle, bars of one standard error."""
    finding = "; ".join(_course(label, scores) for label, scores in curves.items())
    with canvas(WIDTH, 230) as drawing:
        axes = drawing.add_axes((0.13, 0.19, 0.84, 0.76))
        quiet_axes(axes, "step", "SQNR in dB")
        axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for i, (label, scores) in enumerate(curves.items()):
            steps = np.arange(1, len(scores) + 1)
            axes.errorbar(
                steps,
                [s.mean for s in scores],
                [s.standard_error or 0 for s in scores],
                color=COLOURS[SERIES[i % 3]],
                linestyle=DASHES[i % 3],
                marker=MARKERS[i % 3],
                markersize=3,
                linewidth=1.4,
                elinewidth=0.8,
                label=label,
            )
        if len(curves) > 1:
            _legend(axes)
        svg = inline(drawing, name, finding)
    columns = ("step", *(f"{label}, dB" for label in curves), *(f"± {k}" for k in curves))
    rows = tuple(
        (
            str(step + 1),
            *(_number(scores[step].mean) for scores in curves.values() if step < len(scores)),
            *(_number(s[step].standard_error) for s in curves.values() if step < len(s)),
        )
        for step in range(min(map(len, curves.values())))
    )
    return Figure("SQNR of the latents after each step", finding, svg, columns, rows)


def _course(label: str, scores: Sequence[Score]) -> str:
    means = [score.mean for score in scores]
    lowest = int(np.argmin(means))
    return (
        f"{label}: {means[0]:.1f} dB after step 1, lowest {means[lowest]:.1f} dB after step "
        f"{lowest + 1}, {means[-1]:.1f} dB after step {len(means)}"
    )


def _legend(axes: Axes) -> None:
    legend = axes.legend(frameon=False, fontsize="medium", handlelength=2.5, loc="best")
    for text in legend.get_texts():
        text.set_color(COLOURS["ink"])


def put_text(axes: Axes, x: float, y: float, text: str, colour: str, **options: Any) -> None:
    """Plain text in one of the page's colours; `options` are matplotlib's."""
    axes.text(x, y, text, color=COLOURS[colour], **options)


def histogram(name: str, members: Sequence[Histogram]) -> Figure:
    """Distributions of one layer's weight, or of its input at several steps, over the grid.

    Args:
        name: prefix of ids.
        members: of one layer and part.
    """
    first = members[0]
    fmt = FORMATS.get(first.format)
    weight = first.part == "weight"
    with canvas(WIDTH, 200) as drawing:
        axes = drawing.add_axes((0.15, 0.21, 0.82, 0.72))
        quiet_axes(axes, f"value on the grid of {first.format}", "% of values in a bin")
        if fmt is not None:
            grid = np.concatenate([-fmt.magnitudes[:0:-1], fmt.magnitudes]) / fmt.unit
            _draw_grid(axes, grid)
        for i, member in enumerate(members):
            _draw_counts(axes, member, i)
        axes.set_xlim(first.low, first.high)
        if not weight:
            _logarithmic(axes, members)
            _legend(axes)
        finding = _distribution(members, 0 if fmt is None else len(grid))
        svg = inline(drawing, name, f"{first.layer}, {first.part}: {finding}")
    errors = [f"step {m.step + 1}" if m.step is not None else "weight" for m in members]
    rows = tuple(
        (label, f"{sum(m.counts):,}", _number(m.sqnr_db), _number(100 * _near_zero(m)))
        for label, m in zip(errors, members, strict=True)
    )
    columns = ("", "values", "SQNR, dB", "% in the middle tenth of the range")
    title = f"{'Weight' if weight else 'Input'} on the grid of {first.format}"
    return Figure(title, finding, svg, columns, rows)


def _draw_grid(axes: Axes, grid: Any) -> None:
    if len(grid) <= MOST_LINES:
        for value in grid:
            axes.axvline(value, color=COLOURS["series-1"], linewidth=0.8, alpha=0.8, zorder=4)
    else:
        axes.plot(
            grid,
            np.ones(len(grid)),
            "|",
            color=COLOURS["series-1"],
            markersize=7,
            markeredgewidth=0.8,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )


def _shares(member: Histogram) -> Any:
    """Percent of the values in each bin."""
    return 100 * np.asarray(member.counts) / max(sum(member.counts), 1)


def _draw_counts(axes: Axes, member: Histogram, i: int) -> None:
    share = _shares(member)
    edges = np.linspace(member.low, member.high, len(share) + 1)
    if member.part == "weight":
        axes.stairs(share, edges, fill=True, color=COLOURS["series-0"], alpha=0.45, zorder=2)
        axes.stairs(share, edges, color=COLOURS["series-0"], linewidth=1, zorder=3)
        return
    axes.stairs(
        share,
        edges,
        color=COLOURS[("series-0", "ink", "muted")[i % 3]],
        linestyle=DASHES[i % 3],
        linewidth=1.2,
        label=f"step {(member.step or 0) + 1}",
    )


def _logarithmic(axes: Axes, members: Sequence[Histogram]) -> None:
    """A logarithmic scale of percents that ends below the smallest share."""
    axes.set_yscale("log")
    seen = np.concatenate([_shares(member) for member in members])
    axes.set_ylim(float(seen[seen > 0].min(initial=100.0)) / 2, 3 * float(seen.max(initial=1e-3)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _near_zero(member: Histogram) -> float:
    """Share of the values in the middle tenth of the bins."""
    count = len(member.counts)
    tenth = max(count // 20, 1)
    inner = member.counts[count // 2 - tenth : count // 2 + tenth]
    return sum(inner) / max(sum(member.counts), 1)


def _distribution(members: Sequence[Histogram], points: int) -> str:
    first = members[0]
    errors = [m.sqnr_db for m in members if m.sqnr_db is not None]
    middle = f"{100 * _near_zero(first):.0f}{PERCENT} of the values lie in the middle tenth of the range"
    what = f"{points} values of {first.format}" if points else first.format
    if not errors:
        return f"{what}; {middle}"
    low, high = min(errors), max(errors)
    span = f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
    return f"{span} dB SQNR on {what}; {middle}"


def bars(
    name: str,
    title: str,
    values: Mapping[str, float],
    shown: Mapping[str, str],
    finding: str,
) -> Figure:
    """A bar for each model, the first one the reference.

    Args:
        name: prefix of ids.
        title: above the figure.
        values: label -> length.
        shown: label -> the value with its unit.
        finding: in a sentence.
    """
    row = 38
    with canvas(WIDTH, row * len(values) + 4) as drawing:
        axes = drawing.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(row * len(values), 0)
        longest = max(values.values()) or 1.0
        for i, (label, value) in enumerate(values.items()):
            colour = COLOURS["rule" if i == 0 else "series-0"]
            y = i * row
            put_text(axes, 0, y + 11, label, "ink", va="baseline")
            axes.add_patch(
                Rectangle((0, y + 15), 0.74 * value / longest, 11, facecolor=colour, linewidth=0)
            )
            x = 0.74 * value / longest + 0.015
            put_text(axes, x, y + 24.5, shown[label], "ink", va="baseline")
        svg = inline(drawing, name, finding)
    return Figure(title, finding, svg)


def scatter(
    name: str, kind: str, x: str, y: str, points: Mapping[str, tuple[float, float]]
) -> Figure:
    """One bundle's SQNR over another's, a point per layer; above the diagonal `y` is better.

    Args:
        name: prefix of ids.
        kind: ``output`` or ``weight``.
        x: name of the one bundle.
        y: name of the other.
        points: layer -> SQNR in dB of both.
    """
    pairs = np.asarray(list(points.values()))
    above = int((pairs[:, 1] > pairs[:, 0]).sum())
    finding = f"{y} has the higher {kind} SQNR in {above} of {len(pairs)} layers"
    low, high = float(pairs.min()) - 1, float(pairs.max()) + 1
    with canvas(WIDTH, 300) as drawing:
        axes = drawing.add_axes((0.13, 0.13, 0.83, 0.83))
        quiet_axes(axes, f"{x}, dB", f"{y}, dB")
        axes.plot([low, high], [low, high], color=COLOURS["rule"], linewidth=1)
        axes.plot(
            pairs[:, 0], pairs[:, 1], "o", color=COLOURS["series-0"], markersize=4, alpha=0.7
        )
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        svg = inline(drawing, name, finding)
    return Figure(f"{kind.capitalize()} SQNR per layer", finding, svg)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
