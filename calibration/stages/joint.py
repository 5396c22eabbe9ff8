"""Choice: formats and the activations' one scale together, by the error of the layer's output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4dit_onnx.calibration.stages.stage import MOMENTS, Evidence, LayerStage
from fp4dit_onnx.numbers.formats import FORMATS, format_by_name
from fp4dit_onnx.values import whole

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft
    from fp4dit_onnx.calibration.output_search import Settings

__all__ = ["Joint", "OutputRange"]

ROWS = 128


@dataclass(frozen=True)
class Joint(LayerStage):
    """LLM-FP4's search: the weight's format, then the activations', each under its best range, in turn.

    Layers whose activations stay in float are left alone.

    Attributes:
        among: weight formats, with spaces between; of the request's candidates. Without candidates the
            weight keeps its own.
        activations: formats of the activations, with spaces between; those of the bits asked for.
        rounds: how often both are searched.
        candidates: for each range, evenly from 0.1 to 1.2 of the largest magnitude.
        rows: pairs of recorded rows on which the output's error is taken.
    """

    kind: ClassVar[str] = "choice"
    needs: ClassVar[str] = MOMENTS
    among: str = "e2m1 e1m2 e3m0"
    activations: str = "e2m1 e1m2 e3m0 e2m3 e3m2 int6 e3m4 int8"
    rounds: int = 2
    candidates: int = 23
    rows: int = ROWS

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in (*self.among.split(), *self.activations.split()):
            format_by_name(name)
        whole("joint.rounds", self.rounds, 1)
        whole("joint.candidates", self.candidates, 2)
        whole("joint.rows", self.rows, 1)

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft with other formats, and one constant scale of its activations."""
        from fp4dit_onnx.calibration.output_search import OutputSearch

        own = draft.spec.activation_format
        if own is None:
            return draft
        assert evidence.inputs is not None
        weights = [name for name in self.among.split() if name in draft.candidates]
        same = [n for n in self.activations.split() if FORMATS[n].bits == own.bits]
        search = OutputSearch(draft, evidence.inputs(draft), _settings(self))
        spec = search.joint(
            draft.spec, weights or [draft.spec.weight.format], same or [own.name], self.rounds
        )
        return replace(draft, spec=spec)


@dataclass(frozen=True)
class OutputRange(LayerStage):
    """Range: the scales of an output channel under which it errs least, its activations quantized.

    Where nothing was recorded, as for text encoders, the error of the weight itself decides.

    Attributes:
        candidates: evenly from 0.1 to 1.2 of the largest magnitude of each group.
        rows: pairs of recorded rows on which the output's error is taken.
    """

    kind: ClassVar[str] = "range"
    needs: ClassVar[str] = MOMENTS
    candidates: int = 23
    rows: int = ROWS

    def __post_init__(self) -> None:
        """Check the settings."""
        whole("output-range.candidates", self.candidates, 2)
        whole("output-range.rows", self.rows, 1)

    def layer(self, draft: Draft, evidence: Evidence) -> Draft:
        """The draft with its scales."""
        from fp4dit_onnx.calibration.output_search import SMALLEST_SHARE, OutputSearch
        from fp4dit_onnx.calibration.ranges import as_stored, mse_scale

        if evidence.inputs is None:
            scale = mse_scale(draft.weight, draft.spec, SMALLEST_SHARE, self.candidates)
            return replace(draft, scale=scale)
        search = OutputSearch(draft, evidence.inputs(draft), _settings(self))
        scale, _, _ = search.best_scale(search.activations(draft.spec.input), draft.spec)
        return replace(draft, scale=as_stored(scale, draft.spec))


def _settings(stage: Joint | OutputRange) -> Settings:
    from fp4dit_onnx.calibration.output_search import Settings

    return Settings(stage.candidates, stage.rows)
