"""Images of several variants on one labelled sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

__all__ = ["image_grid"]

_SMALL = 256
_MARGIN = 6
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def image_grid(rows: Mapping[str, Sequence[Image.Image]], captions: Sequence[str]) -> Image.Image:
    """One labelled sheet: a row per variant, a column per image, the prompts above.

    Images narrower than 256 pixels are enlarged twice, pixel by pixel.

    Args:
        rows: variant name -> images, all of one size.
        captions: one per column.

    Raises:
        ValueError: there is no image, or not one image per caption in a row.
    """
    pictures = [picture for row in rows.values() for picture in row]
    uneven = [name for name, row in rows.items() if len(row) != len(captions)]
    if not pictures or uneven:
        raise ValueError(f"rows {uneven or list(rows)}: expected {len(captions)} images in each")
    zoom = 2 if pictures[0].width < _SMALL else 1
    width, height = pictures[0].width * zoom, pictures[0].height * zoom
    font = ImageFont.load_default()
    lines = [_wrapped(caption, font, width) for caption in captions]
    line_height = math.ceil(font.getbbox("Ag")[3]) + 2
    left = math.ceil(max(font.getlength(name) for name in rows)) + 2 * _MARGIN
    top = line_height * max(len(line) for line in lines) + 2 * _MARGIN
    size = (left + len(captions) * (width + _MARGIN), top + len(rows) * (height + _MARGIN))
    sheet = Image.new("RGB", size, _WHITE)
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(lines):
        for i, line in enumerate(text):
            place = (left + column * (width + _MARGIN), _MARGIN + i * line_height)
            draw.text(place, line, _BLACK, font)
    for row, (name, drawn) in enumerate(rows.items()):
        y = top + row * (height + _MARGIN)
        draw.text((_MARGIN, y + (height - line_height) // 2), name, _BLACK, font)
        for column, picture in enumerate(drawn):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + column * (width + _MARGIN), y))
    return sheet


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """The words of `text` in lines no longer than `width` pixels, a longer word cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
        while font.getlength(lines[-1]) > width and len(lines[-1]) > 1:
            lines[-1] = lines[-1][:-1]
    return lines
