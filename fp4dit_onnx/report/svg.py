"""matplotlib figures as SVG that lives in a page: its colours, fonts and text are the page's.

Colours are drawn as stand-ins and become CSS variables, so that one drawing serves light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing

__all__ = ["COLOURS", "HEAT", "HEAT_INK", "SERIES", "canvas", "inline", "quiet_axes"]

SERIES = ("series-0", "series-1", "series-2")
CLASSES = 6
HEAT = tuple(f"heat-{i}" for i in range(CLASSES))
HEAT_INK = tuple(f"heat-ink-{i}" for i in range(CLASSES))
_NAMES = ("ink", "muted", "rule", "grid", "plot", *SERIES, *HEAT, *HEAT_INK)
COLOURS = {name: f"#{0x010200 + number:06x}" for number, name in enumerate(_NAMES)}
"""CSS variable -> the colour that stands for it in a drawing."""

POINTS = 72
FONT_POINTS = 10
LARGEST_ZOOM = 1.25
"""An SVG's unit is a CSS pixel: figures are drawn in the size in which a phone shows them."""
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fp4dit-onnx",
    "font.size": FONT_POINTS,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout on every machine
    "path.simplify": False,
    "text.parse_math": False,
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[Drawing]:
    """A drawing of `width` x `height` CSS pixels, under settings that make it reproducible."""
    with mpl.rc_context(_SETTINGS):
        drawing = Drawing(figsize=(width / POINTS, height / POINTS), dpi=POINTS)
        drawing.patch.set_visible(False)
        FigureCanvasSVG(drawing)
        yield drawing


def quiet_axes(axes: Axes, x: str = "", y: str = "") -> None:
    """Axes in the page's colours, without a frame; labels are plain text."""
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(COLOURS["rule"])
    axes.tick_params(
        colors=COLOURS["rule"], labelcolor=COLOURS["muted"], length=3, width=0.8, which="both"
    )
    axes.tick_params(axis="y", length=0, which="both")
    axes.set_xlabel(x, color=COLOURS["muted"])
    axes.set_ylabel(y, color=COLOURS["muted"])


def inline(drawing: Drawing, name: str, label: str) -> Markup:
    """The drawing as an ``<svg role="img">``.

    Args:
        drawing: from `canvas`, still within it.
        name: prefix of its ids, once in a page.
        label: what the drawing shows, for those who do not see it.
    """
    stream = io.StringIO()
    drawing.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*</defs>\s*", "", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"font: (?:\w+ )*([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;?\s*", "", text)
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    body = text[text.index(">") + 1 :]
    width = LARGEST_ZOOM * float(box[1].split()[2])
    head = Markup('<svg role="img" aria-label="{}" viewBox="{}" style="max-width: {:.0f}px">')
    return head.format(label, box[1], width) + Markup(body)
