"""Methods as data: names that users type, the grids they stand for, and how they round. No torch here.

The functions that carry a rounding out are in `calibration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from fp4dit_onnx.errors import UsageError

__all__ = [
    "DEFAULT_RANGE",
    "METHODS",
    "PRESETS",
    "RANGES",
    "AdaRound",
    "Method",
    "RoundToNearest",
    "Rounding",
    "method_by_name",
]

RANGES = ("absmax", "mse", "nvfp4")
"""``absmax`` maps a group's largest weight to the grid's largest value, as FP4DiT does; ``mse``
searches below it for the scale with the smallest squared error; ``nvfp4`` rounds the first to what
scales of two levels hold, see `block_scales`."""
DEFAULT_RANGE = "absmax"


@dataclass(frozen=True)
class RoundToNearest:
    """Nearest grid value; looks at no inputs."""

    prompts: int = 16
    """Pictures that the float sampler draws, for the errors that are reported."""


@dataclass(frozen=True)
class AdaRound:
    """Trained rounding, block by block (FP4DiT section "scale-aware AdaRound"; arXiv 2004.10568).

    Defaults differ from FP4DiT's code where docs/design.md says why.

    Attributes:
        iterations: optimizer steps a block.
        samples: inputs of the network that are recorded, both halves of guidance counted.
        prompts: pictures that the float sampler draws for them.
        batch: samples a step.
        scale_aware: train V' = s V instead of V.
        learning_rate: of Adam; in units of the weights if scale-aware, else of V.
        largest_move: bound on one step's change of V where s is tiny.
        penalty: weight of the regularizer's mean beside errors in units of nearest rounding's.
        warm_up: share of the steps without the regularizer.
        beta_start: exponent of the regularizer after the warm-up.
        beta_end: at the last step; linear in between.
        guided: weight of the guided combination's error beside that of its two halves.
        even: share of the samples spread evenly over the timesteps; the others go where an error
            changes the final latents most.
    """

    iterations: int
    samples: int
    prompts: int
    batch: int = 16
    scale_aware: bool = True
    learning_rate: float = 3e-3
    largest_move: float = 0.5
    penalty: float = 5.0
    warm_up: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    guided: float = 3.0
    even: float = 0.5


Rounding = RoundToNearest | AdaRound

PRESETS: dict[str, AdaRound] = {
    "fast": AdaRound(iterations=60, samples=256, prompts=24, penalty=50.0),
    "balanced": AdaRound(iterations=350, samples=1024, prompts=64),
    "best": AdaRound(iterations=1200, samples=2048, prompts=128),
}
"""Effort of the methods that train; times on the demo pipeline are in docs/quality.md."""

CLASSIC: Mapping[str, Any] = {"scale_aware": False, "learning_rate": 3e-2}
"""AdaRound as published trains V itself."""


@dataclass(frozen=True)
class Method:
    """How weights and activations are quantized.

    Attributes:
        grid: ``fp`` for FP4DiT's formats, ``int`` for integers of the same bits.
        rounding: settings of the rounding.
        range: how the scale of a group is found, one of `RANGES`.
    """

    grid: str
    rounding: Rounding
    range: str = DEFAULT_RANGE


@dataclass(frozen=True)
class _Entry:
    """A method before its effort is known; `changes` to the preset, None for no training."""

    grid: str
    changes: Mapping[str, Any] | None


METHODS: dict[str, _Entry] = {
    "fp4dit": _Entry("fp", {}),
    "fp-adaround": _Entry("fp", CLASSIC),
    "fp-rtn": _Entry("fp", None),
    "int-adaround": _Entry("int", CLASSIC),
    "int-rtn": _Entry("int", None),
}


def method_by_name(
    name: str, preset: str = "balanced", range: str = DEFAULT_RANGE, **changes: float
) -> Method:
    """The method called `name`.

    Args:
        name: a key of `METHODS`.
        preset: a key of `PRESETS`; without effect where nothing is trained.
        range: one of `RANGES`.
        changes: fields of `AdaRound` in place of the preset's.

    Raises:
        UsageError: no such method, preset, range or field; the message lists the known ones.
    """
    for what, found, known in (
        ("method", name, METHODS),
        ("preset", preset, PRESETS),
        ("range", range, RANGES),
    ):
        if found not in known:
            raise UsageError(f"unknown {what} {found!r}: expected one of {', '.join(known)}")
    unknown = set(changes) - {field.name for field in fields(AdaRound)}
    if unknown:
        raise UsageError(f"unknown setting {min(unknown)!r} of method {name!r}")
    entry = METHODS[name]
    if entry.changes is None:
        return Method(entry.grid, RoundToNearest(), range)
    return Method(entry.grid, replace(PRESETS[preset], **{**entry.changes, **changes}), range)
