"""The images and names that tools/train_demo.py learns: Noto Emoji, as an npm package has them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

__all__ = ["SIZE", "Emoji", "learned", "load", "pixels"]

SIZE = 64
KINDS = {
    "face smiling",
    "face affection",
    "face costume",
    "cat face",
    "animal mammal",
    "food fruit",
    "food prepared",
}
"""Subcategories that are learned: 160 images."""


@dataclass(frozen=True)
class Emoji:
    """One image and its words.

    Attributes:
        image: uint8 [64, 64, 3].
        name: long name.
        short: short name.
        kind: subcategory.
        category: as the data set spells it.
    """

    image: npt.NDArray[np.uint8]
    name: str
    short: str
    kind: str
    category: str


def words(text: str) -> str:
    """Lower-case words of `text` with single blanks between."""
    spaced = text.lower().replace("_", " ").replace("-", " ")
    return " ".join(re.sub(r"[^a-z0-9 ]", " ", spaced).split())


def load(folder: Path) -> list[Emoji]:
    """The emoji of the unpacked package, on white."""
    items = []
    for entry in json.loads((folder / "emoji.json").read_text(encoding="utf-8")):
        file = folder / "img" / "google" / "64" / entry["image"]
        if not entry.get("has_img_google") or not file.exists():
            continue
        image = Image.open(file).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        flat = Image.alpha_composite(white, image).convert("RGB").resize((SIZE, SIZE))
        items.append(
            Emoji(
                image=np.asarray(flat),
                name=words(entry["name"]),
                short=words(entry["short_name"]),
                kind=words(entry["subcategory"]),
                category=entry["category"],
            )
        )
    return items


def learned(everything: list[Emoji]) -> list[Emoji]:
    """Those that the transformer learns."""
    return [item for item in everything if item.kind in KINDS]


def pixels(items: list[Emoji]) -> torch.Tensor:
    """Images, float32 [n, 3, 64, 64] in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([item.image for item in items]))  # [n, 64, 64, 3]
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1
