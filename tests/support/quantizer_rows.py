"""Rows that try a quantizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers.formats import FloatFormat


def rows_near_ties(fmt: FloatFormat) -> npt.NDArray[Any]:
    """Rows [50, 25] whose elements, once scaled, lie within an ulp or two of a midpoint."""
    random = np.random.default_rng(9)
    middle = (fmt.magnitudes[:-1] + fmt.magnitudes[1:]) / 2
    amax = (10.0 ** random.uniform(-20, 20, (50, 1))).astype(np.float32)
    x = (amax * random.choice(middle, (50, 8)) / fmt.max_integer).astype(np.float32)
    up, down = np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(0))
    return np.concatenate([-amax, x, up, -down], axis=1)
