"""The noise of training: its variance at every timestep, and what a model's prediction says.

The tables are float32 and equal diffusers' bit for bit, unless they are rescaled, which takes roots:
next to the data ``1 - alpha`` is small, so the last bit of a product is worth 1e-3 of a sigma.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.runtime.schedulers.options import Options

__all__ = [
    "cumulative_alphas",
    "data_and_noise",
    "flow_levels",
    "levels",
    "linspace",
    "positive_alphas",
    "training_sigmas",
]

FloatArray = npt.NDArray[np.float32]

LEAST_SIGNAL = np.float32(2.0**-24)
"""Cumulative alpha that stands for none where its inverse is needed."""


def linspace(start: float, end: float, count: int) -> FloatArray:
    """float32 [count] as torch.linspace fills it: from both ends, one rounding per element."""
    first, last = np.float64(np.float32(start)), np.float64(np.float32(end))
    step = np.float64((np.float32(end) - np.float32(start)) / np.float32(count - 1))
    index = np.arange(count)
    rising, falling = first + step * index, last - step * (count - 1 - index)
    return np.where(index < count // 2, rising, falling).astype(np.float32)


def _cosine_alpha(t: float) -> float:
    """The squared cosine that cumulative alpha follows; t in 0 .. 1."""
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _betas(options: Options) -> FloatArray:
    """The noise variance of every training timestep, float32 [num_train_timesteps]."""
    count, start, end = (options[key] for key in ("num_train_timesteps", "beta_start", "beta_end"))
    if options["trained_betas"] is not None:
        return np.asarray(options["trained_betas"], np.float32)
    if options["beta_schedule"] == "linear":
        return linspace(start, end, count)
    if options["beta_schedule"] == "scaled_linear":
        roots = linspace(start**0.5, end**0.5, count)
        return roots * roots
    ratios = (_cosine_alpha((i + 1) / count) / _cosine_alpha(i / count) for i in range(count))
    return np.array([min(1 - ratio, 0.999) for ratio in ratios], np.float32)


def _products(alphas: FloatArray) -> FloatArray:
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def cumulative_alphas(options: Options) -> FloatArray:
    """Product of 1 - beta up to every training timestep, float32 [num_train_timesteps]."""
    cumulative = _products(np.float32(1) - _betas(options))
    if not options["rescale_betas_zero_snr"]:
        return cumulative
    # arXiv 2305.08891, algorithm 1: shifted so that the last is 0, scaled so that the first stays.
    roots = np.sqrt(cumulative)
    first, last = roots[0], roots[-1]
    shifted = (roots - last) * (first / (first - last))
    squares = shifted * shifted
    alphas = np.concatenate([squares[:1], squares[1:] / squares[:-1]])
    return _products(np.float32(1) - (np.float32(1) - alphas))


def positive_alphas(options: Options) -> FloatArray:
    """`cumulative_alphas` with a little signal where there is none."""
    cumulative = cumulative_alphas(options)
    if options["rescale_betas_zero_snr"]:
        cumulative[-1] = LEAST_SIGNAL
    return cumulative


def training_sigmas(options: Options) -> FloatArray:
    """Noise over signal at every training timestep, float32 [num_train_timesteps]; finite."""
    cumulative = positive_alphas(options)
    return np.asarray(np.sqrt((1 - cumulative) / cumulative), np.float32)


def data_and_noise(
    kind: str, output: FloatArray, sample: FloatArray, alpha: np.float32, sigma: np.float32
) -> tuple[FloatArray, FloatArray]:
    """The data and the noise that ``sample = alpha * data + sigma * noise`` is made of.

    Args:
        kind: what `output` is, as the option ``prediction_type`` says.
        output: of the model, float32 [B, C, H, W].
        sample: what it was given, the same shape.
        alpha: not 0 where `kind` is epsilon.
        sigma: not 0 where `kind` is sample.
    """
    data, noise = output, output
    if kind == "epsilon":
        data = np.asarray((sample - sigma * output) / alpha, np.float32)
    elif kind == "flow_prediction":
        data = np.asarray(sample - sigma * output, np.float32)
        noise = np.asarray(sample + alpha * output, np.float32)
    elif kind == "sample":
        noise = np.asarray((sample - alpha * output) / sigma, np.float32)
    else:
        data = np.asarray(alpha * sample - sigma * output, np.float32)
        noise = np.asarray(alpha * output + sigma * sample, np.float32)
    return data, noise


def levels(sigmas: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Scales of data and noise, and the logarithm of their ratio; infinite where sigma is zero."""
    alphas = 1 / np.sqrt(sigmas * sigmas + 1)
    return _with_log_snr(alphas, sigmas * alphas)


def flow_levels(sigmas: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The same of shares of noise, the rest of which is data."""
    return _with_log_snr(1 - sigmas, sigmas)


def _with_log_snr(
    alphas: FloatArray, noise: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    with np.errstate(divide="ignore"):
        return alphas, noise, np.log(alphas) - np.log(noise)
