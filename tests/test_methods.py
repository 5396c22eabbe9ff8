"""Methods as data: names, presets, ranges."""

from __future__ import annotations

import pytest

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.methods import (
    METHODS,
    PRESETS,
    AdaRound,
    Method,
    RoundToNearest,
    method_by_name,
)


def test_methods() -> None:
    trained = {name: method_by_name(name).rounding for name in METHODS}
    assert [n for n, r in trained.items() if isinstance(r, RoundToNearest)] == [
        "fp-rtn",
        "int-rtn",
    ]
    assert method_by_name("fp4dit") == Method("fp", PRESETS["balanced"], "absmax")
    fast = method_by_name("int-adaround", "fast", "mse", iterations=7).rounding
    assert isinstance(fast, AdaRound)
    assert (fast.iterations, fast.scale_aware) == (7, False)
    assert fast.samples == PRESETS["fast"].samples


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gptq",), "unknown method 'gptq': expected one of .*int-rtn"),
        (("fp4dit", "quick"), "unknown preset 'quick': expected one of fast, balanced, best"),
        (("fp4dit", "fast", "max"), "unknown range 'max': expected one of absmax, mse"),
    ],
)
def test_unknown_methods(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        method_by_name(*arguments)
