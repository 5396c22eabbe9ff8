"""A run of a scheduler as a table of numbers, for runtimes that have no schedulers of their own.

Every step of the schedulers supported is linear in the samples, the model's outputs and the noise,
of which it looks back a few steps. So a run of a given number of steps is a table:

    x[i+1] = sum over j of sample[i][j] * x[i-j] + output[i][j] * o[i-j]  +  noise[i] * z[i]

with x[0] the initial noise times `initial`, o the model's prediction given input[i] * x[i], after
guidance and without the variance half, and z the noise of the step. The table is read off a `Run`
that is given basis vectors in place of images, so the mathematics stays where it is, in
`schedulers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families import family_of_pipeline
from fp4dit_onnx.files import BUNDLE, read_json, write_text
from fp4dit_onnx.runtime.runs import start_run
from fp4dit_onnx.runtime.schedulers import Run, scheduler_from_config

__all__ = [
    "STEP_TABLE",
    "StepTable",
    "bundle_step_table",
    "step_table",
    "with_begun",
    "write_step_table",
]

FloatArray = npt.NDArray[np.float32]

STEP_TABLE = "scheduler/steps.json"
"""Where a bundle has the table of its default number of steps."""

FORMAT_VERSION = 2
TAPS = 4
"""Samples and outputs that a step looks at: its own and those of the three steps before."""
FEWEST_TAPS = 3
"""Columns that every table has."""

_FACTOR = np.float32(2**20)
"""A power of two, by which float32 scales without rounding: what is linear scales exactly."""


@dataclass(frozen=True)
class StepTable:
    """A run of a scheduler, as numbers.

    Attributes:
        timesteps: what the model is told, [steps]: whole numbers, or float32.
        sample: weights of x[i], x[i-1] ... in x[i+1], float32 [steps, 3 or 4].
        output: weights of o[i], o[i-1] ... in x[i+1], float32 [steps, 3 or 4].
        noise: weight of z[i] in x[i+1], float32 [steps]; 0 where a step takes none.
        initial: weight of the first noise in x[0].
        input: weight of x[i] in what the model is given, float32 [steps].
        levels: weights of an image's latents and of noise in x[i], float32 [steps, 2].
        begun: `sample` and `output` of steps with 0, 1, ... steps before them, which is as many as
            there are entries before those of later steps are the same.
    """

    timesteps: npt.NDArray[Any]
    sample: FloatArray
    output: FloatArray
    noise: FloatArray
    initial: float
    input: FloatArray
    levels: FloatArray
    begun: tuple[tuple[FloatArray, FloatArray], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of ``scheduler/steps.json``; float32 values as they are."""
        return {
            "format_version": FORMAT_VERSION,
            "steps": len(self.timesteps),
            "timesteps": self.timesteps.tolist(),
            "sample": self.sample.tolist(),
            "output": self.output.tolist(),
            "noise": self.noise.tolist(),
            "initial": self.initial,
            "input": self.input.tolist(),
            "levels": self.levels.tolist(),
            "begun": [{"sample": x.tolist(), "output": o.tolist()} for x, o in self.begun],
        }

    def dumps(self) -> str:
        """The JSON text, an entry per line, ending in a newline."""
        rows = (f" {json.dumps(key)}: {json.dumps(v)}" for key, v in self.to_json().items())
        return "{\n" + ",\n".join(rows) + "\n}\n"


def step_table(start: Callable[[], Run]) -> StepTable:
    """The table of a run.

    Args:
        start: begins it; called more than once.

    Raises:
        UsageError: a step is not linear: it clips; or as `start` says.
    """
    run = start()
    steps = len(run.timesteps)
    weights = _weights(run, np.float32(1), steps)
    if not np.array_equal(_weights(start(), _FACTOR, steps), weights * _FACTOR):
        raise UsageError(
            "the scheduler's steps are not linear: expected clip_sample false in "
            "scheduler_config.json; run the bundle in Python"
        )
    sample, output = weights[:, :TAPS], weights[:, TAPS:-1]
    used = np.flatnonzero((sample != 0).any(0) | (output != 0).any(0))
    taps = max(FEWEST_TAPS, int(used[-1]) + 1)
    ones = np.ones(len(weights), np.float32)
    divisors = ones if run.input_divisors is None else run.input_divisors
    return StepTable(
        timesteps=np.asarray(run.timesteps),
        sample=sample[:, :taps],
        output=output[:, :taps],
        noise=weights[:, -1],
        initial=run.initial_scale,
        input=(1 / divisors).astype(np.float32),
        levels=np.stack(run.levels, axis=-1),
    )


def with_begun(table: StepTable, start: Callable[[], Run]) -> StepTable:
    """`table` of a run that `start` begins, with the steps of runs that begin at any of its own."""
    steps, taps = table.sample.shape
    if not (table.sample[:, 1:].any() or table.output[:, 1:].any()):
        return table
    found = np.stack([table.sample, table.output])[:, None].repeat(TAPS, axis=1)
    for first in range(steps):
        count = min(TAPS, steps - first)
        rows = _weights(start().since(first), np.float32(1), count)
        for before, row in enumerate(rows):
            found[:, before, first + before] = row[:taps], row[TAPS : TAPS + taps]
    last = found[:, -1:]
    differing = int((found != last).any(axis=(0, 2, 3)).sum())
    return replace(table, begun=tuple((found[0, k], found[1, k]) for k in range(differing)))


def _weights(run: Run, size: np.float32, steps: int) -> FloatArray:
    """Weights of the samples, the outputs and the noise in the next sample, [steps, 2 TAPS + 1].

    Basis vectors of length `size` stand for them. Sample and output of step i take place i modulo
    TAPS, so what a step gives holds the weights of its own and of those before.
    """
    basis = np.eye(2 * TAPS + 1, dtype=np.float32)[:, None, None] * size  # [places, 1, 1, places]
    rows = np.zeros((steps, 2 * TAPS + 1), np.float32)
    for i in range(steps):
        sample, output, noise = basis[[i % TAPS]], basis[[TAPS + i % TAPS]], basis[[-1]]
        found = run.step(output, sample, noise).ravel()
        ago = [(i - j) % TAPS for j in range(TAPS)]
        rows[i] = found[[*ago, *(TAPS + place for place in ago), -1]]
    return rows


def bundle_step_table(folder: Path, steps: int) -> StepTable:
    """The table of `steps` steps of the bundle in `folder`.

    Args:
        folder: holds ``model_index.json`` and ``scheduler/scheduler_config.json``.
        steps: calls of the model.

    Raises:
        BundleError: one of the two cannot be read.
        UsageError: no table: a family or scheduler that is not supported, steps that are not
            linear or whose sizes depend on the image's, or `steps` out of range.
    """
    index = folder / "model_index.json"
    pipeline = str(read_json(index, "the list of components", BUNDLE).get("_class_name"))
    family = family_of_pipeline(pipeline, index)
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path, "the scheduler's settings", BUNDLE, infinite=True)
    scheduler = scheduler_from_config(config)
    if config.get("use_dynamic_shifting"):
        raise UsageError(
            "use_dynamic_shifting makes the steps depend on the image's size: expected a "
            "scheduler whose steps are the same for every size; run the bundle in Python"
        )
    start = partial(start_run, family, scheduler, steps, 0)
    return with_begun(step_table(start), start)


def write_step_table(folder: Path, steps: int) -> bool:
    """Write ``scheduler/steps.json`` into a bundle; returns whether there is such a table.

    Args:
        folder: as for `bundle_step_table`.
        steps: the bundle's default number of steps.
    """
    try:
        table = bundle_step_table(folder, steps)
    except UsageError:
        return False
    write_text(folder / STEP_TABLE, table.dumps())
    return True
