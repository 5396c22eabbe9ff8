"""Every target that a bundle can be converted to."""

from __future__ import annotations

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.targets.inline import INLINE
from fp4dit_onnx.targets.nbits import NBITS, NBITS_HALF
from fp4dit_onnx.targets.standard import STANDARD
from fp4dit_onnx.targets.target import FP4DIT, Target

__all__ = ["TARGETS", "target_by_name"]

TARGETS: dict[str, Target] = {
    target.name: target for target in (FP4DIT, INLINE, STANDARD, NBITS, NBITS_HALF)
}


def target_by_name(name: str) -> Target:
    """The target called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in TARGETS:
        raise UsageError(f"target {name!r}: expected one of {', '.join(TARGETS)}")
    return TARGETS[name]
