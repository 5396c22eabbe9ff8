"""Transform: inputs divided by a vector that suits what a branch of low rank leaves of the weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fp4dit_onnx.calibration.stages.balance import Balance
from fp4dit_onnx.calibration.stages.branch import Branch
from fp4dit_onnx.calibration.stages.stage import Evidence
from fp4dit_onnx.values import whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft, Drafts

__all__ = ["Smooth"]


@dataclass(frozen=True)
class Smooth(Balance):
    """SVDQuant's smoothing (arXiv 2411.05007): ``a^i / w^j`` of maxima, the branch in place.

    (i, j) is (0, 0), which is no vector at all, (s, 0) or (s, 1 - s) for s from 1 / steps to 1; that of
    the least error of the outputs is taken, activations quantized. Layers without a branch, and those
    whose activations stay in float, are left alone.

    Attributes:
        steps: of s.
        rank: of the branch, and `share` and `bits`: as the stage `branch` has them.
    """

    steps: int = 10
    rank: int = Branch.rank
    share: float = Branch.share
    bits: int = Branch.bits

    def __post_init__(self) -> None:
        """Check the settings."""
        whole("smooth.steps", self.steps, 1)
        self._branch()

    def _branch(self) -> Branch:
        return Branch(self.rank, self.share, bits=self.bits)

    def group(self, members: Sequence[Draft], evidence: Evidence) -> Drafts:
        """See `Balance`."""
        from fp4dit_onnx.calibration import balancing
        from fp4dit_onnx.calibration.branching import split

        assert evidence.inputs is not None
        same: Drafts = {draft.name: draft for draft in members}
        branch = self._branch()
        ranks = [branch.rank_beside(draft) for draft in members]
        if not all(ranks) or any(d.spec.input is None for d in members):
            return same
        given = evidence.inputs(members[0])
        inputs, weights = given.peaks().amax(dim=0), balancing.column_peaks(members)

        def ways() -> Iterator[Drafts]:
            yield same
            for step in range(1, self.steps + 1):
                i = step / self.steps
                for j in dict.fromkeys((0.0, 1 - i)):
                    divisor = balancing.smooth_scale(inputs, weights, i, j)
                    yield balancing.balanced(members, divisor)

        def prepared(way: Drafts) -> Drafts:
            drafts = [*way.values()]
            return split(drafts, [d.weight for d in drafts], max(ranks), given.execution)

        return balancing.least_error(ways(), evidence, prepared)
