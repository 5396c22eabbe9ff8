"""What a calibration can afford in a given time: data first, then optimizer steps from what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fp4dit_onnx.calibration.importance import PROBES
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.sampling import PROBE_PROMPTS
from fp4dit_onnx.calibration.stages import INPUTS, MOMENTS
from fp4dit_onnx.errors import UsageError

__all__ = ["LEVELS", "Effort", "Level", "Speed", "affordable", "data_seconds", "iterations_within"]

LEAST_STEPS = 2
SMALLEST_SIDE = 256
"""Pixels; images are calibrated at half their size where time is short, but not below this."""
ENOUGH = 3
"""The level that is wanted at an image's own size; below it half the size buys more."""
SHARE = {True: 0.5, False: 0.85}
"""Of the time that data may take, with training after it and without."""
MOMENT_ROWS = 0.6
"""What summing second moments of a row adds to running it."""
WALKS = 3
"""Times that a unit runs each sample: for its target, for its inputs, for its results."""
COMPARED = 512
"""Samples, at most, on which nearest and trained rounding are compared, twice each."""
FEWEST_ITERATIONS, MOST_ITERATIONS = 10, 5000


@dataclass(frozen=True)
class Level:
    """An amount of data.

    Attributes:
        prompts: images that the sampler generates.
        share: of the denoising steps of an image.
        samples: recorded inputs.
    """

    prompts: int
    share: float
    samples: int


LEVELS = (
    Level(2, 0.1, 16),
    Level(4, 0.2, 64),
    Level(8, 0.3, 96),
    Level(8, 0.5, 128),
    Level(16, 0.5, 192),
    Level(24, 0.5, 256),
    Level(24, 1.0, 256),
    Level(32, 1.0, 512),
    Level(64, 1.0, 1024),
    Level(128, 1.0, 2048),
)
"""Rising; the data of fp4dit's presets are the last but three, the last but one and the last."""


@dataclass(frozen=True)
class Speed:
    """What was measured on this machine, in seconds.

    Attributes:
        prompt: to encode a prompt.
        row: to run the network for one sample, at the images' own size.
        after: of what follows the calibration.
    """

    prompt: float
    row: float
    after: float


@dataclass(frozen=True)
class Effort:
    """The data of a calibration; sizes in pixels."""

    prompts: int
    samples: int
    steps: int
    height: int
    width: int


def data_seconds(effort: Effort, speed: Speed, halves: int, method: Method, scale: float) -> float:
    """What encoding, sampling and running samples through all units takes.

    Args:
        effort: the data.
        speed: of this machine.
        halves: samples of an image in a call: 2 with classifier-free guidance.
        method: says what is recorded.
        scale: what a row takes at the effort's size, over what it takes at the images' own.
    """
    probes = min(PROBES, effort.steps)
    calls = effort.steps + probes * (effort.steps / 2 + 2)  # a disturbed one takes about three
    rows = halves * (PROBE_PROMPTS * calls + effort.prompts * effort.steps)
    if method.needs(MOMENTS):
        rows += halves * MOMENT_ROWS * effort.prompts * effort.steps
    if method.needs(INPUTS):
        rows += WALKS * effort.samples + 4 * min(effort.samples, COMPARED)
    return (effort.prompts + 1) * speed.prompt + rows * speed.row * scale


def affordable(
    seconds: float, speed: Speed, *, steps: int, size: tuple[int, int], halves: int, method: Method
) -> Effort:
    """The most data that leaves time for training, if there is any.

    Args:
        seconds: that are left.
        speed: of this machine.
        steps: denoising steps of an image.
        size: height and width of an image in pixels; the data may be of a half or a quarter of it.
        halves: see `data_seconds`.
        method: what is calibrated.

    Raises:
        UsageError: not even the least data fit.
    """
    limit = (seconds - speed.after) * SHARE[method.needs(INPUTS)]
    best: tuple[int, Effort] | None = None
    least = 0.0
    for part in (1, 2, 4):
        height, width = (side // part for side in size)
        if part > 1 and min(height, width) < SMALLEST_SIDE:
            break
        for number, level in enumerate(LEVELS):
            count = max(min(steps, LEAST_STEPS), round(steps * level.share))
            effort = Effort(level.prompts, level.samples, count, height, width)
            needed = data_seconds(effort, speed, halves, method, part**-2)
            if number == 0:
                least = needed
            if needed <= limit and (best is None or number > best[0]):
                best = number, effort
        if best is not None and best[0] >= ENOUGH:
            break
    if best is None:
        shortest = least / SHARE[method.needs(INPUTS)] + speed.after
        raise UsageError(
            f"time: {seconds / 60:.1f} minutes are left, and the smallest calibration of this model "
            f"takes about {shortest / 60:.1f} here: give more with --time, or choose --method fp-rtn"
        )
    return best[1]


def iterations_within(seconds: float, step: float, shares: Sequence[float]) -> int:
    """Optimizer steps a unit that fit.

    Args:
        seconds: for training all units.
        step: seconds of one step of the unit that was timed.
        shares: of each unit, what a step of it takes over that.
    """
    fitting = int(seconds / (step * sum(shares)))
    return max(FEWEST_ITERATIONS, min(MOST_ITERATIONS, fitting))
