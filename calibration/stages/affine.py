"""Transform: inputs multiplied by a trained matrix, after AffineQuant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MAXIMA, Evidence, Together
from fp4dit_onnx.spec.affine import Affine
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft, Drafts

__all__ = ["AffineQuant"]


@dataclass(frozen=True)
class AffineQuant(Together):
    """AffineQuant's matrix under its gradual mask (arXiv 2403.12544), where it lowers the error.

    It starts from SmoothQuant's vector. On the recorded rows, rounded to nearest, the layers as they
    are, with the vector, and with the matrix are compared; so where the matrix gains nothing over its
    diagonal, there is a product by a vector in place of one by a matrix, or none.

    Attributes:
        alpha: of the vector.
        share: sf, by which the mask multiplies what is off the diagonal.
        epochs: in which the mask opens from the diagonal to the whole matrix.
        iterations: of the optimizer, over all epochs.
        learning_rate: of AdamW.
        most: inputs of the largest layer that may have a matrix; larger ones are left alone.
    """

    needs: ClassVar[str] = MAXIMA
    transform: ClassVar[type[Transform]] = Affine
    alpha: float = 0.5
    share: float = 0.1
    epochs: int = 20
    iterations: int = 160
    learning_rate: float = 5e-3
    most: int = 2304

    def __post_init__(self) -> None:
        """Check the settings."""
        real("affinequant.alpha", self.alpha, 0, 1)
        real("affinequant.share", self.share, 0, 1)
        for name in ("epochs", "iterations", "most"):
            whole(f"affinequant.{name}", getattr(self, name), 1)
        real("affinequant.learning_rate", self.learning_rate, 0)

    def group(self, members: Sequence[Draft], evidence: Evidence) -> Drafts:
        """See `Together`."""
        from fp4dit_onnx.calibration import balancing
        from fp4dit_onnx.calibration.affine import trained_matrix
        from fp4dit_onnx.calibration.transforming import transformed_draft
        from fp4dit_onnx.spec.vector import Vector

        assert evidence.inputs is not None
        plain = {draft.name: draft for draft in members}
        if members[0].weight.shape[1] > self.most:
            return plain
        given = evidence.inputs(members[0])
        peaks = given.peaks().amax(dim=0)
        divisor = balancing.smooth_scale(peaks, balancing.column_peaks(members), self.alpha)
        rows = given.rows().halves.flatten(0, 1)
        matrix = trained_matrix(members, rows, divisor, self, given.execution)
        one = Affine(members[0].name, Vector(matrix.numpy()))
        mixed = {name: transformed_draft(draft, one) for name, draft in plain.items()}
        return balancing.least_error(
            [plain, balancing.balanced(members, divisor), mixed], evidence
        )
