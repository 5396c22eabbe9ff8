"""How heavy the tails of a tensor are: what makes it hard to quantize, and what would help."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["OUTLIER", "kurtosis", "outlier_channels"]

OUTLIER = 4.0
"""A channel is an outlier if its root mean square is that many times the median channel's."""


def kurtosis(x: npt.NDArray[np.floating]) -> float:
    """The mean over rows of ``mean((x - mu)^4) / mean((x - mu)^2)^2`` over each row's values.

    3 for normal values, 1.8 for uniform ones, K for a row with one value of K other than 0 (K large).

    Args:
        x: [..., K]; rows whose values are all equal do not count.

    Returns:
        From 1; 0 where no row counts.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    square = np.square(rows - rows.mean(axis=1, keepdims=True))
    variance = square.mean(axis=1)
    live = variance > 0
    if not live.any():
        return 0.0
    return float((np.square(square[live]).mean(axis=1) / np.square(variance[live])).mean())


def outlier_channels(x: npt.NDArray[np.floating]) -> tuple[int, ...]:
    """Which of the K channels of rows [..., K] are outliers, ascending; see `OUTLIER`."""
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    size = np.sqrt(np.square(rows).mean(axis=0))
    return tuple(int(i) for i in np.flatnonzero(size > OUTLIER * np.median(size)))
