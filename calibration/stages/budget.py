"""Budget: bits and group sizes that a layer may have, for the whole network to choose among."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE, scale_format_by_name
from fp4dit_onnx.spec.spec import LayerSpec, PerGroup, TensorSpec, whole_group
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Drafts

__all__ = ["MOST_BITS", "MOST_SQNR_DB", "Budget"]

ROW = "row"
"""Among group sizes: all inputs share a scale."""
MOST_BITS, MOST_SQNR_DB = 32, 200
"""Beyond what any quantized weight takes, and any float32 prediction keeps."""


@dataclass(frozen=True)
class Budget:
    """Rounds each layer in several precisions; `calibration.choosing` spends the budget on them.

    Without `bits`, `sqnr` and `own` it does nothing. A layer keeps its activations' format, and what a
    user's rule says of it.

    Attributes:
        bits: most bits per weight over all quantized layers, scales included; 0 for no such budget.
        sqnr: least SQNR of the network's guided prediction in dB; 0 for no such budget.
        own: whether `bits` are those that the layers take without a budget: nothing is stored beyond
            that, and each bit is where it helps most. Known once the layers are.
        groups: inputs that share a scale, ``row`` for all, with spaces between; of 4-bit weights.
        wide: 8-bit format of sensitive layers, with one scale per row; empty for none.
        pairs: recorded samples, both halves of guidance each, on which sensitivity is measured.
    """

    kind: ClassVar[str] = "budget"
    needs: ClassVar[str] = MOMENTS
    iterations: ClassVar[int] = 0
    bits: float = 0.0
    sqnr: float = 0.0
    own: bool = False
    groups: str = "16 32 64 128 row"
    wide: str = "int8"
    pairs: int = 8

    def __post_init__(self) -> None:
        """Check the settings."""
        real("budget.bits", self.bits, 0, MOST_BITS)
        real("budget.sqnr", self.sqnr, 0, MOST_SQNR_DB)
        if self.bits and self.sqnr:
            raise UsageError(
                f"budgets of {self.bits:g} bits and of {self.sqnr:g} dB: expected one of them, since "
                "each decides the other"
            )
        if self.own and (self.bits or self.sqnr):
            asked = f"{self.bits:g} bits" if self.bits else f"{self.sqnr:g} dB"
            raise UsageError(
                f"a budget of {asked} and of the layers' own bits: expected one of them"
            )
        whole("budget.pairs", self.pairs, 1)
        for size in self.groups.split():
            if size != ROW and not (size.isdecimal() and int(size) and int(size) % 8 == 0):
                raise UsageError(
                    f"budget.groups: {size!r}: expected positive multiples of 8, or {ROW}"
                )
        if self.wide:
            format_by_name(self.wide)

    @property
    def asked(self) -> bool:
        """Whether there is a budget."""
        return bool(self.bits or self.sqnr or self.own)

    def precisions(
        self,
        spec: LayerSpec,
        formats: Sequence[str],
        scale: str,
        k: int,
        width: int | None = None,
    ) -> tuple[TensorSpec, ...]:
        """What the weight of a layer may be, its own specification first, each once.

        Args:
            spec: of the layer.
            formats: of narrow weights; empty for none.
            scale: format of scales of groups. One scale per row is no product of two.
            k: inputs of the layer.
            width: of each of the tensors that they are made of, into whose next no group reaches; None
                for one.
        """
        of_row = DEFAULT_SCALE if scale_format_by_name(scale).multiplied else scale
        most = width or k
        sizes = [most if size == ROW else min(int(size), most) for size in self.groups.split()]
        pairs = [(name, size) for name in formats for size in sizes]
        pairs += [(self.wide, most)] if self.wide else []
        if width is not None:
            pairs = [(name, whole_group(size, width)) for name, size in pairs]
        made = [TensorSpec(n, PerGroup(s), of_row if s == most else scale) for n, s in pairs]
        return tuple(dict.fromkeys((spec.weight, *made)))

    def apply(self, drafts: Drafts, evidence: Evidence) -> Drafts:
        """The drafts as they are; each was also rounded in every precision that it may have."""
        for draft in drafts.values():
            for weight in draft.precisions:
                evidence.rounded(replace(draft, spec=replace(draft.spec, weight=weight)))
        return drafts
