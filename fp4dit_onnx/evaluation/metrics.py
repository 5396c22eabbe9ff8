"""Metrics of images and latents, and the mean and error of their values.

What this module computes itself needs numpy alone. The learned metrics of `METRICS` are other
people's networks: `Metric.load` gives the function where package and weights are on this machine,
else the reason why not; nothing is ever downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.evaluation import learned_metrics
from fp4dit_onnx.numbers.compare import sqnr_db

__all__ = ["METRICS", "Metric", "Pixels", "Score", "psnr", "sqnr", "ssim"]

Pixels = npt.NDArray[np.uint8]
Measure = Callable[[Pixels, Any], float]
"""An image, uint8 [H, W, 3], and what the metric needs beside it -> value."""


@dataclass(frozen=True)
class Score:
    """One metric over all images of a variant.

    Attributes:
        mean: over prompts and seeds.
        standard_error: of the mean; None for a single image.
        values: one per image, all seeds of the first prompt first.
    """

    mean: float
    standard_error: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Score:
        """The score of `values`, at least one."""
        count = len(values)
        error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else None
        return cls(float(np.mean(values)), error, tuple(values))


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of two images, in dB.

    Equal images count as if one sample differed by one grey level, the closest that different
    images can be (89 dB at 64 x 64 in colour): means stay finite.

    Args:
        a: uint8, any shape.
        b: uint8, the same shape.

    Raises:
        ValueError: shapes or types differ.
    """
    _check_pair(a, b)
    squares = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    return 10 * math.log10(255**2 * a.size / max(float(squares.sum()), 1.0))


SSIM_TAPS, SSIM_SIGMA = 11, 1.5
"""The Gaussian window of Wang et al. 2004, Image quality assessment, section III.C."""


def ssim(a: Pixels, b: Pixels) -> float:
    """Structural similarity of two images (Wang et al. 2004), at most 1: the mean over channels.

    Images are reflected at their borders, as torchmetrics does.

    Args:
        a: uint8 [H, W, C], both sides at least 6.
        b: uint8, the same shape.

    Raises:
        ValueError: shapes or types differ, or the window does not fit.
    """
    _check_pair(a, b)
    border = SSIM_TAPS // 2
    if a.ndim != 3 or min(a.shape[:2]) <= border:
        raise ValueError(
            f"found {a.shape}: expected [H, W, C] of at least {border + 1} pixels a side"
        )
    pads = ((border, border), (border, border), (0, 0))
    x, y = (np.pad(m.astype(np.float64), pads, mode="reflect") for m in (a, b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _windowed_mean(x), _windowed_mean(y)
    var_x = _windowed_mean(x * x) - mean_x**2
    var_y = _windowed_mean(y * y) - mean_y**2
    covariance = _windowed_mean(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)  # equation 13
    found = likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(found.mean())


def _windowed_mean(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[H, W, C] -> [H - 10, W - 10, C]: the Gaussian mean wherever the window fits."""
    taps = np.exp(-0.5 * ((np.arange(SSIM_TAPS) - SSIM_TAPS // 2) / SSIM_SIGMA) ** 2)
    taps /= taps.sum()
    height, width = (size - SSIM_TAPS + 1 for size in x.shape[:2])
    rows = sum((tap * x[i : i + height] for i, tap in enumerate(taps)), np.zeros(()))
    return sum((tap * rows[:, i : i + width] for i, tap in enumerate(taps)), np.zeros(()))


def sqnr(signal: npt.NDArray[Any], approximation: npt.NDArray[Any]) -> float:
    """10 log10(|signal|^2 / |signal - approximation|^2) in dB, from -limit to limit.

    The limit, 10 log10(n 2^46), is what n values reach of which one, as large as their root mean
    square, is off by a float32 rounding (174 dB at n = 4096): equal arrays count as that, and means
    stay finite.

    Args:
        signal: numbers of any shape, at least one.
        approximation: the same shape.

    Raises:
        ValueError: shapes differ, there is no value, or one is not finite.
    """
    if signal.shape != approximation.shape or not signal.size:
        raise ValueError(f"found {signal.shape} and {approximation.shape}: expected one shape")
    if not (np.isfinite(signal).all() and np.isfinite(approximation).all()):
        raise ValueError("found numbers that are not finite: expected none")
    limit = 10 * math.log10(signal.size * 2.0**46)
    return min(max(sqnr_db(signal, approximation), -limit), limit)


def _check_pair(a: Pixels, b: Pixels) -> None:
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(
            f"found {a.dtype} {a.shape} and {b.dtype} {b.shape}: expected uint8 of one shape"
        )


@dataclass(frozen=True)
class Metric:
    """One measure of an image.

    Attributes:
        name: in tables and JSON.
        unit: of its values; empty for pure numbers.
        larger_is_better: which way to read it.
        needs: what an image is compared with: the float model's image or the prompt. What needs
            the prompt alone is measured of the float model too.
        load: the function (image uint8 [H, W, 3], reference image or prompt) -> value, or why
            it is absent.
    """

    name: str
    unit: str
    larger_is_better: bool
    needs: Literal["reference", "prompt"]
    load: Callable[[], Measure | str]


METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr", "dB", True, "reference", lambda: psnr),
        Metric("ssim", "", True, "reference", lambda: ssim),
        Metric("lpips", "", False, "reference", learned_metrics.load_lpips),
        Metric("clip_score", "", True, "prompt", learned_metrics.load_clip_score),
        Metric("image_reward", "", True, "prompt", learned_metrics.load_image_reward),
        Metric("hps_v2", "", True, "prompt", learned_metrics.load_hps_v2),
    )
}
"""Name -> metric, in the order of tables. Another one is another entry."""
