"""Transforms: inputs divided by a vector and weights multiplied by it, which rules find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MAXIMA, MOMENTS, Evidence, Together
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.spec.diagonal import Diagonal
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft, Drafts

__all__ = ["Awq", "Balance", "Salience", "SmoothQuant"]

STATISTICS = ("max", "mean")


class Balance(Together):
    """A rule for one vector."""

    needs: ClassVar[str] = MAXIMA
    iterations: ClassVar[int] = 0
    transform: ClassVar[type[Transform]] = Diagonal


@dataclass(frozen=True)
class SmoothQuant(Balance):
    """``a^alpha / w^(1 - alpha)`` of the maxima of inputs and weights (arXiv 2211.10438).

    Attributes:
        alpha: 1 leaves all of the range to weights.
        statistic: of the samples' maxima over their tokens: ``max``, or ``mean`` as ViDiT-Q takes.
    """

    alpha: float = 0.5
    statistic: str = "max"

    def __post_init__(self) -> None:
        """Check the settings."""
        real("smoothquant.alpha", self.alpha, 0, 1)
        if self.statistic not in STATISTICS:
            raise UsageError(
                f"smoothquant.statistic {self.statistic!r}: expected {' or '.join(STATISTICS)}"
            )

    def group(self, members: Sequence[Draft], evidence: Evidence) -> Drafts:
        """See `Together`."""
        from fp4dit_onnx.calibration import balancing

        assert evidence.inputs is not None
        peaks = evidence.inputs(members[0]).peaks()
        inputs = peaks.amax(dim=0) if self.statistic == "max" else peaks.double().mean(dim=0)
        weights = balancing.column_peaks(members)
        return balancing.balanced(members, balancing.smooth_scale(inputs, weights, self.alpha))


@dataclass(frozen=True)
class Salience(Balance):
    """PTQ4DiT's balancing of salience, samples weighted by Spearman's rho (arXiv 2405.16005)."""

    def group(self, members: Sequence[Draft], evidence: Evidence) -> Drafts:
        """See `Together`."""
        from fp4dit_onnx.calibration import balancing

        assert evidence.inputs is not None
        peaks = evidence.inputs(members[0]).peaks()
        divisor = balancing.salience_scale(peaks, balancing.column_peaks(members))
        return balancing.balanced(members, divisor)


@dataclass(frozen=True)
class Awq(Balance):
    """A power of inputs' mean magnitudes, searched by the error of the outputs (arXiv 2306.00978).

    Weights are rounded to nearest under absmax scales meanwhile, and activations as the layer's are.
    Exponent 0, no vector at all, is among them.

    Attributes:
        steps: exponents 0, 1 / steps, 2 / steps and so on, below 1.
    """

    needs: ClassVar[str] = MOMENTS
    steps: int = 20

    def __post_init__(self) -> None:
        """Check the setting."""
        whole("awq.steps", self.steps, 1)

    def group(self, members: Sequence[Draft], evidence: Evidence) -> Drafts:
        """See `Together`."""
        from fp4dit_onnx.calibration import balancing

        assert evidence.inputs is not None
        means = evidence.inputs(members[0]).rows().halves.abs().double().mean(dim=(0, 1))
        ways: list[Drafts] = [{draft.name: draft for draft in members}]
        for step in range(1, self.steps):
            divisor = balancing.awq_scale(means, step / self.steps)
            ways.append(balancing.balanced(members, divisor))
        return balancing.least_error(ways, evidence)
