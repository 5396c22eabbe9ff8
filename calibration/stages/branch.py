"""Branch: what a weight is worst at in few bits goes through two matrices of low rank beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence, Together
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft, Drafts
    from fp4dit_onnx.spec.spec import LayerSpec
    from fp4dit_onnx.spec.transform import Transform

__all__ = ["Branch"]


@dataclass(frozen=True)
class Branch(Together):
    """SVDQuant (arXiv 2411.05007): y = Q(x) Q(R)^T + (x A) B, and R what the branch leaves of W.

    Linears that read one tensor after the same transforms share A: W has their rows below each other.
    The first A B is W's best approximation of its rank; each further one that of W - Q(R), rounded to
    nearest, as long as the error of the layer's output falls, activations quantized.

    Attributes:
        rank: of A B.
        share: most that the rank may be of a layer's smaller side: narrow layers have less.
        rounds: at most so many A B are tried.
        bits: weights of more have no branch.
    """

    kind: ClassVar[str] = "branch"
    needs: ClassVar[str] = MOMENTS
    iterations: ClassVar[int] = 0
    rank: int = 32
    share: float = 0.1
    rounds: int = 10
    bits: int = 4

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("rank", "rounds", "bits"):
            whole(f"branch.{name}", getattr(self, name), 1)
        real("branch.share", self.share, 1e-9, 1)

    def takes(self, draft: Draft) -> bool:
        """See `Together`; a branch that is there stays."""
        return draft.spec.branch is None and self.rank_beside(draft) > 0

    def group(self, members: Sequence[Draft], evidence: Evidence) -> Drafts:
        """The drafts whose weights are R, their branches in the specifications."""
        from fp4dit_onnx.calibration.branching import branched

        alike: dict[tuple[Transform, ...], list[Draft]] = {}
        for draft in members:
            alike.setdefault(draft.spec.input_ops, []).append(draft)
        found: dict[str, Draft] = {}
        for same in alike.values():
            found |= branched(same, evidence, max(map(self.rank_beside, same)), self.rounds)
        return found

    def rank_beside(self, draft: Draft) -> int:
        """Of a draft's branch; 0 for none."""
        return self.rank_of(draft.spec, *draft.weight.shape)

    def rank_of(self, spec: LayerSpec, n: int, k: int) -> int:
        """Of the branch of a layer [n, k]; 0 for none."""
        if spec.weight_format.bits > self.bits:
            return 0
        return max(1, min(self.rank, int(self.share * min(n, k))))
