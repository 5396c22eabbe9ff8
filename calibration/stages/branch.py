"""Branch: what a weight is worst at in few bits goes through two matrices of low rank beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence, LayerStage
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft
    from fp4dit_onnx.spec.spec import LayerSpec

__all__ = ["Branch"]


@dataclass(frozen=True)
class Branch(LayerStage):
    """SVDQuant (arXiv 2411.05007): y = Q(x) Q(R)^T + (x A) B, and R what the branch leaves of W.

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
    rank: int = 32
    share: float = 0.1
    rounds: int = 10
    bits: int = 4

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("rank", "rounds", "bits"):
            whole(f"branch.{name}", getattr(self, name), 1)
        real("branch.share", self.share, 1e-9, 1)

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft whose weight is R, its branch in the specification."""
        from fp4dit_onnx.calibration.branching import branched

        rank = self.rank_of(draft.spec, *draft.weight.shape)
        return branched(draft, evidence, rank, self.rounds) if rank else draft

    def rank_of(self, spec: LayerSpec, n: int, k: int) -> int:
        """Of the branch of a layer [n, k]; 0 for none."""
        if spec.weight_format.bits > self.bits:
            return 0
        return max(1, min(self.rank, int(self.share * min(n, k))))
