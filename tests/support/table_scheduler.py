"""A scheduler by a bundle's table of steps, as programs without Python have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.runtime.step_table import bundle_step_table

__all__ = ["Table", "write_table"]

Array = npt.NDArray[Any]


def write_table(folder: Path, steps: int) -> None:
    """Writes the table of a run of `steps` steps into the bundle in `folder`."""
    table = bundle_step_table(folder, steps)
    (folder / "scheduler" / "steps.json").write_text(table.dumps())


class Table:
    """A scheduler, and its run, that takes the steps of a bundle's steps.json."""

    def __init__(self, folder: Path) -> None:
        self.rows = json.loads((folder / "scheduler" / "steps.json").read_text())
        self.timesteps = np.array(self.rows["timesteps"])
        self.initial_scale = self.rows["initial"]
        self.stochastic = any(self.rows["noise"])
        self.samples: list[Array] = []
        self.outputs: list[Array] = []
        self.index = self.first = 0
        self.begun: list[dict[str, Any]] = []

    def start(self, steps: int, plan: Any = None) -> Table:
        """The run: the table's own steps."""
        del steps, plan
        return self

    def since(self, index: int) -> Table:
        """The steps of a run that begins with an image."""
        self.index = self.first = index
        self.timesteps = self.timesteps[index:]
        self.begun = self.rows["begun"]
        return self

    def noised(self, data: Array, noise: Array, index: int = 0) -> Array:
        """The image's sample, a sum in float32."""
        kept, added = np.array(self.rows["levels"][self.first + index], np.float32)
        return np.asarray(kept * data + added * noise)

    def model_input(self, index: int, sample: Array) -> Array:
        """What the model is given, a product in float64."""
        factor: float = self.rows["input"][self.index]
        return (sample.astype(np.float64) * factor).astype(np.float32)

    def step(self, output: Array, sample: Array, noise: Array | None = None) -> Array:
        """The next sample, summed in float64."""
        taps = len(self.rows["sample"][0])
        self.samples = [sample, *self.samples][:taps]
        self.outputs = [output, *self.outputs][:taps]
        i, total = self.index, np.zeros(sample.shape)
        weights = [*self.begun, *[self.rows] * len(self.timesteps)][i - self.first]
        self.index += 1
        for j, (x, o) in enumerate(zip(self.samples, self.outputs, strict=True)):
            total += weights["sample"][i][j] * x.astype(np.float64)
            total += weights["output"][i][j] * o.astype(np.float64)
        if noise is not None:
            total += self.rows["noise"][i] * noise.astype(np.float64)
        return total.astype(np.float32)
