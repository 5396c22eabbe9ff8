"""Transforms: inputs rotated, for instance, where that lowers the error of a layer's output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, make_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fp4dit_onnx.calibration.stages.stage import Evidence, Together
from fp4dit_onnx.spec.transform import Transform

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.draft import Draft, Drafts

__all__ = ["TransformStage", "stage_of"]


class TransformStage(Together):
    """x becomes x R and the weight makes up for it, where that lowers the error; R is `transform`.

    Its settings are the transform's, and ``always``: whether it is done without asking for the error.
    Linears of a unit that read one tensor are transformed together or not at all: the transform is one
    operator. Both ways are rounded, and the lower error of the outputs with quantized activations
    decides. Layers whose activations stay in float are left alone.
    """

    iterations: ClassVar[int] = 0
    transform: ClassVar[type[Transform]]
    always: bool

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by what it tries: its class is made by `stage_of`, and has no place of its own."""
        return _remade, (self.transform, vars(self))

    def takes(self, draft: Draft) -> bool:
        """See `Together`."""
        return draft.spec.input is not None

    def group(self, members: Sequence[Draft], evidence: Evidence) -> Drafts:
        """See `Together`: transformed, where they are worth it."""
        turned = [self._turned(draft) for draft in members]
        pairs = zip(members, turned, strict=True)
        if self.always or sum(_gain(p, t, evidence) for p, t in pairs) > 0:
            return {draft.name: draft for draft in turned}
        return {}

    def _turned(self, draft: Draft) -> Draft:
        from fp4dit_onnx.calibration.transforming import transformed_draft

        one = self.transform(**{f.name: vars(self)[f.name] for f in fields(self.transform)})
        return transformed_draft(draft, one)


_STAGES: dict[Any, type[TransformStage]] = {}
"""By transform: each has one class."""


def stage_of(transform: type[Transform]) -> type[TransformStage]:
    """The stage that tries a transform."""
    if transform not in _STAGES:
        _STAGES[transform] = make_dataclass(
            transform.__name__,
            [("always", "bool", False)],
            bases=(TransformStage, transform),
            namespace={"transform": transform},
            frozen=True,
        )
    return _STAGES[transform]


def _remade(transform: type[Transform], settings: dict[str, Any]) -> TransformStage:
    return stage_of(transform)(**settings)


def _gain(plain: Draft, turned: Draft, evidence: Evidence) -> float:
    """Logarithm of the error without the transform over that with it."""
    assert evidence.inputs is not None
    assert evidence.chosen is not None
    errors = [evidence.inputs(d).error(evidence.chosen(d)) for d in (plain, turned)]
    before, after = (max(error, 1e-30) for error in errors)
    return math.log(before / after)
