"""Draw the diagrams of docs/concepts.md to ``docs/pictures/``, from the numbers of the package.

Plain SVG on a white card, legible on light and dark pages. With ``--check`` nothing is written:
exit 1 if a diagram is other than what would be drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS, FloatArray

__all__ = ["PICTURES", "main"]

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
INK, MUTED, RULE, CARD = "#1a1a1a", "#5f6368", "#c8ccd0", "#ffffff"
BLUE, ORANGE, GREEN = "#1b5fa8", "#b8500c", "#1f7a3d"
ROOM = 45
"""Pixels that a number takes below an axis."""
FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"


# --- drawing -------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    start, end = f"{_number(x1)} {_number(y1)}", f"{_number(x2)} {_number(y2)}"
    return f'<path d="M{start}L{end}" stroke="{colour}" stroke-width="{_number(width)}"/>'


def _ticks(
    xs: npt.NDArray[np.floating[Any]], y: float, half: float, colour: str, width: float
) -> str:
    """Upright strokes at `xs`, from `half` above to `half` below y."""
    path = "".join(f"M{_number(x)} {_number(y - half)}v{_number(2 * half)}" for x in xs)
    return f'<path d="{path}" stroke="{colour}" stroke-width="{_number(width)}"/>'


def _dot(x: float, y: float, colour: str, radius: float = 4) -> str:
    return f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{_number(radius)}" fill="{colour}"/>'


def _box(x: float, y: float, width: float, height: float, fill: str, opacity: float = 1) -> str:
    return (
        f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" '
        f'height="{_number(height)}" rx="3" fill="{fill}" fill-opacity="{_number(opacity)}"/>'
    )


def _text(
    x: float, y: float, words: str, colour: str = INK, *, at: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{_number(x)}" y="{_number(y)}" fill="{colour}" text-anchor="{at}"{weight}>'
        f"{escape(words)}</text>"
    )


def _picture(width: int, height: int, says: str, parts: Sequence[str]) -> str:
    """An SVG on a card; `says` is for those who do not see it."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="{FONT}" font-size="13">'
    )
    card = f'<rect width="{width}" height="{height}" rx="8" fill="{CARD}"/>'
    return "\n".join([head, f"<title>{escape(says)}</title>", card, *parts, "</svg>", ""])


# --- diagrams ------------------------------------------------------------------------------------


def grids() -> str:
    """The values of every format, each scaled to a largest value of 1."""
    left, right, top, row = 130, 790, 62, 30
    middle, half = (left + right) / 2, (right - left) / 2
    parts = [
        _text(20, 28, "Where the values of each format lie, largest value scaled to 1", bold=True)
    ]
    for i, fmt in enumerate(FORMATS.values()):
        y = top + i * row
        colour = BLUE if fmt.exponent_bits else ORANGE
        values = fmt.magnitudes / fmt.max_integer
        ticks = np.unique(np.concatenate([-values, values]))
        parts.append(_text(20, y + 5, fmt.name, colour, bold=True))
        parts.append(_text(110, y + 5, f"{fmt.bits} bits", MUTED, at="end"))
        parts.append(_line(left, y, right, y, RULE))
        stroke = 2 if len(ticks) < 20 else 1 if len(ticks) < 80 else 0.5
        parts.append(_ticks(middle + half * ticks, y, 9, colour, stroke))
    bottom = top + len(FORMATS) * row
    parts += [
        _text(middle + half * value, bottom, _number(value), MUTED, at="middle")
        for value in (-1, -0.5, 0, 0.5, 1)
    ]
    parts.append(_text(20, bottom + 26, "blue: floating point, dense near 0", BLUE))
    parts.append(_text(300, bottom + 26, "orange: integers, evenly spaced", ORANGE))
    return _picture(820, bottom + 44, "Number lines of all element formats", parts)


def _weights() -> FloatArray:
    """Sixteen weights as a trained layer has them: most small, one large."""
    values = np.random.default_rng(4).standard_normal(15) * 0.3
    return np.append(values, 1.0).astype(np.float32)


def rounding() -> str:
    """The same weights on the grid of e2m1 and on that of int4."""
    weights, left, right = _weights(), 60, 780
    middle, half = (left + right) / 2, (right - left) / 2
    title = "Sixteen weights (dots above) and what is stored (dots on the grid)"
    parts = [_text(20, 28, title, bold=True)]
    for i, (name, colour) in enumerate((("e2m1", BLUE), ("int4", ORANGE))):
        fmt, top = FORMATS[name], 76 + i * 130
        q, scale = numerics.quantize(weights[None], fmt)
        rounded = (q.astype(np.float32) * scale)[0]
        error = float(np.sqrt(np.mean((rounded - weights) ** 2)))
        parts.append(_text(20, top - 18, name, colour, bold=True))
        parts.append(_text(66, top - 18, f"root mean square error {error:.3f}", MUTED))
        parts.append(_line(left, top + 50, right, top + 50, RULE))
        values = fmt.magnitudes * float(scale[0, 0])
        places = middle + half * np.concatenate([-values[:0:-1], values])
        parts.append(_ticks(places, top + 50, 8, colour, 1.5))
        for value, gap in zip(values, np.diff(values, prepend=-1), strict=True):
            if half * gap >= ROOM:
                words = _number(value)
                parts.append(_text(middle + half * value, top + 74, words, MUTED, at="middle"))
        for weight, stored in zip(weights, rounded, strict=True):
            x, y = middle + half * float(weight), middle + half * float(stored)
            parts += [_line(x, top, y, top + 50, RULE), _dot(x, top, INK, 3.5),
                      _dot(y, top + 50, colour)]  # fmt: skip
    return _picture(840, 310, title, parts)


def _cells(x: float, y: float, words: Sequence[str], colour: str, width: float = 74) -> list[str]:
    parts = []
    for i, word in enumerate(words):
        parts.append(_box(x + i * width, y - 17, width - 6, 25, colour, 0.12))
        parts.append(_text(x + i * width + (width - 6) / 2, y, word, colour, at="middle"))
    return parts


def exact() -> str:
    """A product of four weights and four activations on integers."""
    act, weight = FORMATS["e2m3"], FORMATS["e2m1"]
    x, w = np.array([[0.9, -0.31, 0.06, -1.5]]), np.array([[0.1, -0.3, 0.05, 0.2]])
    q, x_scale = numerics.quantize(x.astype(np.float32), act)
    integers, w_scale = numerics.quantize(w.astype(np.float32), weight)
    products = q.astype(int)[0] * integers.astype(int)[0]
    total, true = int(products.sum()), float((x * w).sum())
    result = total * float(w_scale[0, 0]) * float(x_scale[0, 0])
    codes = numerics.encode(integers.astype(np.float32), weight)[0]
    rows: list[tuple[str, Sequence[str], str, str]] = [
        ("activations, float32", [_number(v) for v in x[0]], INK, ""),
        ("as integers of e2m3", [str(int(v)) for v in q[0]], BLUE, f"scale {x_scale[0, 0]:.4f}"),
        ("weights, 4-bit codes", [f"{int(c):04b}" for c in codes], INK, "two per byte"),
        ("as integers of e2m1", [str(int(v)) for v in integers[0]], ORANGE,
         f"scale {w_scale[0, 0]:.4f}"),
        ("products, int8 by int8", [str(v) for v in products], GREEN, "exact"),
    ]  # fmt: skip
    parts = [_text(20, 28, "FP4 times FP6 is integer arithmetic", bold=True)]
    for i, (name, words, colour, note) in enumerate(rows):
        y = 68 + i * 40
        parts += [_text(20, y, name), *_cells(210, y, words, colour), _text(520, y, note, MUTED)]
    y = 68 + len(rows) * 40
    parts += [_text(20, y, "sum, int32"), *_cells(210, y, [str(total)], GREEN, 296),
              _text(520, y, "exact: at most 60 x 12 x 128 = 92,160 in a group", MUTED)]  # fmt: skip
    y += 40
    parts += [_text(20, y, "times both scales"), *_cells(210, y, [f"{result:.4f}"], INK, 296),
              _text(520, y, f"the only roundings; without quantizing: {true:.4f}", MUTED)]  # fmt: skip
    return _picture(860, y + 28, "A dot product on grid integers, step by step", parts)


def tokens() -> str:
    """Three tokens of unlike size: one scale for all, and one scale each."""
    fmt = FORMATS["e2m1"]
    x = np.array([[0.11, -0.06, 0.08, 0.02], [0.9, -0.4, 0.7, 0.3], [8, -3, 5, 1.2]], np.float32)
    together, one = numerics.quantize(x.reshape(1, -1), fmt)
    apart, each = numerics.quantize(x, fmt)
    shared = together.reshape(x.shape).astype(np.float32) * one[0, 0]
    own = apart.astype(np.float32) * each
    parts = [_text(20, 28, "One scale for the tensor, or one for each token (e2m1)", bold=True)]
    heads = ("activations", "one scale", "a scale per token", "scale")
    for x0, head in zip((90, 320, 550, 778), heads, strict=True):
        parts.append(_text(x0, 60, head, MUTED))
    for i, row in enumerate(x):
        y = 90 + i * 36
        parts.append(_text(20, y, f"token {i + 1}"))
        for x0, values, colour in ((90, row, INK), (320, shared[i], ORANGE), (550, own[i], BLUE)):
            parts += _cells(x0, y, [_number(float(v)) for v in values], colour, 55)
        parts.append(_text(778, y, f"{each[i, 0]:.4f}", BLUE))
    last = 90 + len(x) * 36
    small = "the small token becomes zeros and the largest sets the step for all"
    parts.append(_text(320, last, small, ORANGE))
    return _picture(850, last + 22, "Quantizing token by token keeps small tokens", parts)


PICTURES: dict[str, Callable[[], str]] = {
    "grids.svg": grids,
    "rounding.svg": rounding,
    "exact.svg": exact,
    "tokens.svg": tokens,
}


def main(arguments: list[str] | None = None) -> int:
    """Write the diagrams, or with ``--check`` say whether they are up to date.

    Returns:
        0, or 1 if ``--check`` found another diagram.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and change nothing")
    check = parser.parse_args(arguments).check
    differing = []
    for name, draw in PICTURES.items():
        path, drawn = FOLDER / name, draw()
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(drawn, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != drawn:
            differing.append(name)
    if differing:
        command = "python tools/generate_pictures.py"
        print(f"docs/pictures differs in {', '.join(differing)}: run  {command}", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
