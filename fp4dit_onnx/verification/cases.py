"""The inputs on which a bundle is verified; an export measures its own error on the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.families import Family, InputSpec
from fp4dit_onnx.families.config import Config, size_of
from fp4dit_onnx.families.interface import TIMESTEPS

__all__ = ["CASES", "Case", "case_inputs", "case_sizes", "inputs_of_sizes"]

Array = npt.NDArray[Any]
KEPT = 0.7
"""Share of the tokens that a mask keeps."""


@dataclass(frozen=True)
class Case:
    """One evaluation of a transformer.

    Attributes:
        batch: rows.
        text: tokens of the text, where that is open.
        timestep: that the model is told.
        height: of the latents, as a share of the model's own size, or of `LARGEST_GRID`.
        width: likewise.
    """

    batch: int
    text: int
    timestep: float
    height: Fraction = Fraction(1)
    width: Fraction = Fraction(1)

    def __str__(self) -> str:
        """As reports show it."""
        size = f"{float(self.height):.2g} x {float(self.width):.2g}"
        return f"batch {self.batch}, text {self.text}, t {self.timestep:g}, size {size}"


HALF, THIRDS = Fraction(1, 2), Fraction(2, 3)
CASES = (Case(2, 16, 500.0), Case(1, 1, 999.0, HALF, HALF), Case(3, 33, 20.0, height=THIRDS))
"""The model's own size, half of it, and 3:2; not beyond it, where some models have no positions."""


PACKED_SIZE = 16
"""Side of the grid of patches where a model has no size of its own."""
LARGEST_GRID = 16
"""Side of the grid of patches that stands for a larger model's own: every tensor between nodes is kept
while a model is verified, which at 1024 tokens of PixArt-XL is more than a machine has."""


def case_sizes(case: Case, config: Config) -> dict[str, int]:
    """Sizes of the dynamic axes in `case`; height and width are whole patches, `image` counts them."""
    patch = int(config.get("patch_size") or 1)
    own = min(int(config.get("sample_size") or PACKED_SIZE * patch) // patch, LARGEST_GRID)
    height, width = (max(1, round(own * share)) for share in (case.height, case.width))
    return {
        "batch": case.batch,
        "text": case.text,
        "height": height * patch,
        "width": width * patch,
        "image": height * width,
    }


def case_inputs(family: Family, config: Config, index: int) -> dict[str, Array]:
    """Random inputs of ``CASES[index]``, always the same; see `inputs_of_sizes`."""
    case = CASES[index]
    return inputs_of_sizes(family, config, case_sizes(case, config), case.timestep, index)


def inputs_of_sizes(
    family: Family, config: Config, sizes: Mapping[str, int], timestep: float, seed: int
) -> dict[str, Array]:
    """Random inputs of a transformer.

    Floats are standard normal. A mask hides about a third of the tokens, never the first, and at
    the end where the network assumes that; other integers are even below what their input allows.
    """
    random = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for spec in family.interface(config).inputs:
        shape = spec.shape(config, sizes)
        if spec.name == "timestep":
            scale = 1.0 if spec.values is None else _limit(spec, config) / TIMESTEPS
            value: Array = np.full(shape, timestep * scale)
        elif spec.values is not None:
            value = random.integers(0, _limit(spec, config), shape)
        elif spec.dtype == "int64":
            value = random.random(shape) < KEPT
            value[:, 0] = True
            if spec.padded:
                value = -np.sort(-value.astype(np.int64), axis=1)
        else:
            value = random.standard_normal(shape)
        feed[spec.name] = value.astype(spec.dtype)
    return feed


def _limit(spec: InputSpec, config: Config) -> int:
    return size_of(config, spec.values) if isinstance(spec.values, str) else spec.values or 1
