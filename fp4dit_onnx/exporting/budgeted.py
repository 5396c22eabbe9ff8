"""A method under the budget of bits or quality that a request asks for."""

from __future__ import annotations

from fp4dit_onnx.calibration.methods import Method, measuring_names
from fp4dit_onnx.calibration.stages import MOMENTS
from fp4dit_onnx.errors import UsageError

__all__ = ["budgeted"]


def budgeted(method: Method, target_bits: float | None, min_sqnr: float | None) -> Method:
    """The method with the budget that is asked for, at most one of the two.

    Args:
        method: as its recipe has it.
        target_bits: bits per weight, None for any.
        min_sqnr: of the guided prediction in dB, None for any.

    Raises:
        UsageError: both are asked for, or the method measures no sensitivity.
    """
    asked = {"bits": target_bits, "sqnr": min_sqnr}
    given = {name: value for name, value in asked.items() if value is not None}
    if not given:
        return method
    if len(given) > 1:
        raise UsageError(
            f"target bits {target_bits:g} and min SQNR {min_sqnr:g} dB: expected one of them, since "
            "each decides the other"
        )
    if not method.needs(MOMENTS):
        raise UsageError(
            f"method {method.name} measures no layer's sensitivity, which --target-bits and "
            f"--min-sqnr need: expected one of {', '.join(measuring_names())}, or "
            "--weight-format auto beside it"
        )
    return method.with_stage("budget", **{"bits": 0.0, "sqnr": 0.0, "own": False, **given})
