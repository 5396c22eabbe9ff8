"""What calibration did and found, as quantization.json has it; see `manifest.Manifest`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Calibrated", "Compared", "Spent"]


@dataclass(frozen=True)
class Compared:
    """One set of choices, formats and rotations, on the whole network.

    Attributes:
        choice: each layer's own, or the one that all layers share.
        error: guided error along the float sampler's trajectory, in units of the first set's.
        taken: whether the bundle has this set.
    """

    choice: str
    error: float
    taken: bool


@dataclass(frozen=True)
class Spent:
    """A budget of bits or of quality, and what became of it.

    The error is that of the guided prediction, activations quantized, on recorded calls of the float
    sampler's trajectory, each counted by its importance.

    Attributes:
        target_bits: most bits per weight that were asked for, None where quality was.
        min_sqnr_db: least SQNR of the guided prediction that was asked for, None where bits were.
        least_bits: per weight, if every layer had its smallest precision.
        most_bits: the same of the largest that is of use.
        bits_per_weight: reached, scales included.
        sqnr_db: of the guided prediction, reached.
        shares: of what all weights add to the squared error, by layer, as expected.
    """

    target_bits: float | None
    min_sqnr_db: float | None
    least_bits: float
    most_bits: float
    bits_per_weight: float
    sqnr_db: float
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibrated:
    """Where torch ran the float pipeline: the device, and the type of the network there."""

    device: str
    precision: str
