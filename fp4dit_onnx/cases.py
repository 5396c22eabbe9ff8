"""The inputs on which a bundle is verified; an export measures its own error on the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.models import Family

__all__ = ["CASES", "Case", "case_inputs"]


@dataclass(frozen=True)
class Case:
    """Sizes of one evaluation of a transformer, and the timestep that it is told."""

    batch: int
    text: int
    timestep: float

    def __str__(self) -> str:
        """As reports show it."""
        return f"batch {self.batch}, text {self.text}, t {self.timestep:g}"


CASES = (Case(2, 16, 500.0), Case(1, 1, 999.0), Case(3, 33, 20.0))


def case_inputs(
    family: Family, config: Mapping[str, Any], index: int
) -> dict[str, npt.NDArray[Any]]:
    """Random inputs of ``CASES[index]``, always the same.

    Floats are standard normal. A mask hides about a third of the tokens, never the first.
    """
    case, random = CASES[index], np.random.default_rng(index)
    sizes = {"batch": case.batch, "text": case.text}
    feed: dict[str, npt.NDArray[Any]] = {}
    for spec in family.inputs(config):
        shape = spec.shape(config, sizes)
        if spec.name == "timestep":
            value = np.full(shape, case.timestep)
        elif spec.dtype == "int64":
            value = random.random(shape) < 0.7
            value[:, 0] = True
        else:
            value = random.standard_normal(shape)
        feed[spec.name] = value.astype(spec.dtype)
    return feed
