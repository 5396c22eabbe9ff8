"""What a calibration can afford in a given time: data first, then optimizer steps from what is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fp4dit_onnx.calibration.importance import PROBES
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.sampling import PROBE_PROMPTS
from fp4dit_onnx.calibration.stages import INPUTS, MOMENTS
from fp4dit_onnx.errors import UsageError

__all__ = [
    "LEVELS",
    "Division",
    "Effort",
    "Level",
    "Speed",
    "affordable",
    "data_seconds",
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
FEWEST_ITERATIONS, MOST_ITERATIONS = 50, 5000
"""Of a unit that is trained at all: 10 left the blocks of PixArt-XL where nearest rounding had them, and
60 took the errors of two to 0.74 and 0.46 of that."""
REMEMBERED = 0.15
"""Of the work on all units, the last part that says how fast this machine is."""
TELLING = 0.2
"""Of the mean unit's work, what says anything: the time of smaller ones goes into other things."""


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
    share = SHARE[method.needs(INPUTS) or method.evolution is not None]
    limit = (seconds - speed.after) * share
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
        shortest = needed[0] / share + speed.after
        raise UsageError(
            f"time: {seconds / 60:.1f} minutes are left, and the smallest calibration of this model "
            f"takes about {shortest / 60:.1f} here: give more with --time, or choose --method fp-rtn"
        )
    return max(found, key=lambda pair: pair[0])[1]


def _effort(level: Level, steps: int, part: int) -> Effort:
    count = max(min(steps, LEAST_STEPS), round(steps * level.share))
    return Effort(level.prompts, level.samples, count, part)


@dataclass
class Division:
    """Divides the time that is left among the units that are not begun, anew before each of them.

    What a unit takes is predicted from what was timed. What units took over that, `slowness`, tells how
    the machine is now, and whether the prediction was right; recent units count most.

    Attributes:
        left: seconds until everything is to be done.
        after: seconds of what follows the units, as predicted.
        walk: seconds of running the samples through all units, without training, as predicted.
        step: seconds of an optimizer step of a unit of size 1, as timed.
        sizes: of the units, by name: what a step takes over that.
        clock: seconds.
        asked: optimizer steps of every unit, however long they take; None for what there is time for.
    """

    left: Callable[[], float]
    after: float
    walk: float
    step: float
    sizes: Mapping[str, float]
    clock: Callable[[], float] = time.monotonic
    asked: int | None = None
    slowness: float = field(default=1.0, init=False)
    _waiting: dict[str, float] = field(init=False)
    _begun: dict[str, float] = field(default_factory=dict, init=False)
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is begun."""
        self._waiting, self._since = dict(self.sizes), self.clock()

    def begin(self, name: str) -> int:
        """Optimizer steps of a unit whose turn has come.

        Zero where there is time for fewer than `FEWEST_ITERATIONS`: later units then have more, and
        they see the errors of those before them.
        """
        waiting = max(sum(self._waiting.values()), 1e-9)
        begun = self.slowness * sum(self._begun.values())
        usable = self.left() - begun - self.after * max(1.0, self.slowness)
        seconds = usable / (self.slowness * waiting) - self._walk  # of training a unit of size 1
        steps = min(MOST_ITERATIONS, int(seconds / self.step))
        if self.asked is not None:
            steps = self.asked
        elif steps < FEWEST_ITERATIONS:
            steps = 0
        self._begun[name] = self._waiting.pop(name) * (self._walk + steps * self.step)
        return steps

    def skip(self, name: str) -> None:
        """A unit was finished by an earlier run."""
        del self._waiting[name]

    def finish(self, name: str) -> None:
        """A unit is finished."""
        now, work = self.clock(), self._begun.pop(name)
        took, self._since = now - self._since, now
        every = sum(self.sizes.values()) * (work / max(self.sizes[name], 1e-9))
        if work > TELLING * every / len(self.sizes):
            kept = math.exp(-work / (REMEMBERED * every))
            self.slowness = kept * self.slowness + (1 - kept) * took / work

    @property
    def _walk(self) -> float:
        """Seconds for a unit of size 1."""
        return self.walk / max(sum(self.sizes.values()), 1e-9)
