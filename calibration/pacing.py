"""What a calibration can afford in a given time: data first, then optimizer steps from what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fp4dit_onnx.calibration.importance import PROBES
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.sampling import PROBE_PROMPTS
from fp4dit_onnx.calibration.stages import INPUTS, MOMENTS
from fp4dit_onnx.errors import UsageError

__all__ = [
    "LEVELS",
    "Effort",
    "Level",
    "Speed",
    "affordable",
    "data_seconds",
    "iterations_within",
    "walk_seconds",
]

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
    """The data of a calibration.

    Attributes:
        prompts: images.
        samples: recorded inputs.
        steps: denoising steps.
        part: by which an image's sides are divided, 1 for none.
    """

    prompts: int
    samples: int
    steps: int
    part: int = 1

    @property
    def scale(self) -> float:
        """What a sample takes, over what one of full size takes, at most."""
        return self.part**-2


def data_seconds(effort: Effort, speed: Speed, halves: int, method: Method) -> float:
    """What encoding the prompts, the importance of steps and sampling take.

    Args:
        effort: the data.
        speed: of this machine.
        halves: samples of an image in a call: 2 with classifier-free guidance.
        method: says what is recorded.
    """
    probes = min(PROBES, effort.steps)
    calls = effort.steps + probes * (effort.steps / 2 + 2)  # a disturbed one takes about three
    rows = halves * (PROBE_PROMPTS * calls + effort.prompts * effort.steps)
    if method.needs(MOMENTS):
        rows += halves * MOMENT_ROWS * effort.prompts * effort.steps
    return (effort.prompts + 1) * speed.prompt + rows * speed.row * effort.scale


def walk_seconds(effort: Effort, speed: Speed, method: Method) -> float:
    """What running the samples through all units takes, without training; arguments as above."""
    if not method.needs(INPUTS):
        return 0.0
    rows = WALKS * effort.samples + 4 * min(effort.samples, COMPARED)
    return rows * speed.row * effort.scale


def affordable(
    seconds: float,
    speed: Speed,
    *,
    steps: int,
    side: int,
    halves: int,
    method: Method,
    resizes: bool = True,
) -> Effort:
    """The most data that leaves time for training, if there is any.

    Args:
        seconds: that are left.
        speed: of this machine.
        steps: denoising steps of an image.
        side: of an image in pixels, the shorter; data may be of a half or a quarter of it.
        halves: see `data_seconds`.
        method: what is calibrated.
        resizes: whether the network takes images of other sizes.

    Raises:
        UsageError: not even the least data fit.
    """
    limit = (seconds - speed.after) * SHARE[method.needs(INPUTS)]
    found: list[tuple[int, Effort]] = []
    for part in (1, 2, 4) if resizes else (1,):
        if part > 1 and side // part < SMALLEST_SIDE:
            break
        efforts = [_effort(level, steps, part) for level in LEVELS]
        needed = [
            data_seconds(e, speed, halves, method) + walk_seconds(e, speed, method)
            for e in efforts
        ]
        found += [(i, e) for i, e in enumerate(efforts) if needed[i] <= limit][-1:]
        if found and found[-1][0] >= ENOUGH:
            break
    if not found:
        shortest = needed[0] / SHARE[method.needs(INPUTS)] + speed.after
        raise UsageError(
            f"time: {seconds / 60:.1f} minutes are left, and the smallest calibration of this model "
            f"takes about {shortest / 60:.1f} here: give more with --time, or choose --method fp-rtn"
        )
    return max(found, key=lambda pair: pair[0])[1]


def _effort(level: Level, steps: int, part: int) -> Effort:
    count = max(min(steps, LEAST_STEPS), round(steps * level.share))
    return Effort(level.prompts, level.samples, count, part)


def iterations_within(seconds: float, step: float, shares: Sequence[float]) -> int:
    """Optimizer steps per unit that fit.

    Args:
        seconds: for training all units.
        step: seconds of one step of the unit that was timed.
        shares: of each unit, what a step of it takes over that.
    """
    fitting = int(seconds / (step * sum(shares)))
    return max(FEWEST_ITERATIONS, min(MOST_ITERATIONS, fitting))
