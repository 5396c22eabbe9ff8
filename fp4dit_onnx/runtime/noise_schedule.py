"""What diffusers' schedulers share: their options, and the noise table of training.

The tables are float32 and equal diffusers' bit for bit: next to the data ``1 - alpha`` is small,
so the last bit of a cumulative product is worth 1e-3 of a sigma.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError

__all__ = [
    "DDIM",
    "DDPM",
    "DPM_SOLVER",
    "FLOW_MATCH_EULER",
    "Options",
    "check_steps",
    "checked_options",
    "cumulative_alphas",
]

FloatArray = npt.NDArray[np.float32]
Options = Mapping[str, Any]

# What is known of the options: a default and, where the code below does not take every value, the
# values that are supported. Options that only act together with a refused one have no entry there.
_SCHEDULE: dict[str, tuple[Any, tuple[Any, ...] | None]] = {
    "num_train_timesteps": (1000, None),
    "beta_start": (0.0001, None),
    "beta_end": (0.02, None),
    "beta_schedule": ("linear", ("linear", "scaled_linear", "squaredcos_cap_v2")),
    "trained_betas": (None, None),
    "prediction_type": ("epsilon", ("epsilon", "v_prediction", "sample")),
    "thresholding": (False, (False,)),
    "dynamic_thresholding_ratio": (0.995, None),
    "sample_max_value": (1.0, None),
    "steps_offset": (0, None),
    "rescale_betas_zero_snr": (False, (False,)),
}
_SPACINGS = ("linspace", "leading", "trailing")
DPM_SOLVER = _SCHEDULE | {
    "timestep_spacing": ("linspace", _SPACINGS),
    "solver_order": (2, (1, 2, 3)),
    "algorithm_type": ("dpmsolver++", ("dpmsolver++",)),
    "solver_type": ("midpoint", ("midpoint", "heun")),
    "lower_order_final": (True, (True, False)),
    "euler_at_final": (False, (True, False)),
    "use_karras_sigmas": (False, (True, False)),
    "use_exponential_sigmas": (False, (False,)),
    "use_beta_sigmas": (False, (False,)),
    "use_lu_lambdas": (False, (False,)),
    "use_flow_sigmas": (False, (False,)),
    "flow_shift": (1.0, None),
    "final_sigmas_type": ("zero", ("zero", "sigma_min")),
    "lambda_min_clipped": (-math.inf, None),
    "variance_type": (None, (None,)),
    "use_dynamic_shifting": (False, (False,)),
    "time_shift_type": ("exponential", None),
}
DDIM = _SCHEDULE | {
    "timestep_spacing": ("leading", _SPACINGS),
    "clip_sample": (True, (True, False)),
    "clip_sample_range": (1.0, None),
    "set_alpha_to_one": (True, (True, False)),
}
DDPM = _SCHEDULE | {
    "timestep_spacing": ("leading", _SPACINGS),
    "clip_sample": (True, (True, False)),
    "clip_sample_range": (1.0, None),
    "variance_type": ("fixed_small", ("fixed_small", "fixed_large")),
}
FLOW_MATCH_EULER: dict[str, tuple[Any, tuple[Any, ...] | None]] = {
    "num_train_timesteps": (1000, None),
    "shift": (1.0, None),
    "use_dynamic_shifting": (False, (True, False)),
    "base_shift": (0.5, None),
    "max_shift": (1.15, None),
    "base_image_seq_len": (256, None),
    "max_image_seq_len": (4096, None),
    "invert_sigmas": (False, (False,)),
    "shift_terminal": (None, None),
    "use_karras_sigmas": (False, (False,)),
    "use_exponential_sigmas": (False, (False,)),
    "use_beta_sigmas": (False, (False,)),
    "time_shift_type": ("exponential", ("exponential", "linear")),
    "stochastic_sampling": (False, (False,)),
}


def checked_options(
    name: str, config: Options, known: Mapping[str, tuple[Any, tuple[Any, ...] | None]]
) -> dict[str, Any]:
    """`config` over the defaults of `known`; keys with a leading underscore are notes.

    Args:
        name: the scheduler, for messages.
        config: the contents of scheduler_config.json.
        known: one of the tables above.

    Raises:
        UsageError: an option that is unknown, or whose value is not supported.
    """
    options = {key: default for key, (default, _) in known.items()}
    for key, value in config.items():
        if key.startswith("_"):
            continue
        if key not in known:
            if value is None or value is False:
                continue
            raise UsageError(
                f"{name}: option {key} = {value!r} is not supported: remove it from "
                f"scheduler_config.json, or choose among {', '.join(sorted(known))}"
            )
        supported = known[key][1]
        if supported is not None and value not in supported:
            raise UsageError(
                f"{name}: option {key} = {value!r} is not supported: "
                f"expected one of {', '.join(map(repr, supported))}"
            )
        options[key] = value
    return options


def check_steps(steps: int, options: Options) -> None:
    """Refuse a number of steps that no trajectory has.

    Raises:
        UsageError: `steps` is not between 1 and the number of training timesteps.
    """
    most = options["num_train_timesteps"]
    if not 1 <= steps <= most:
        raise UsageError(f"steps = {steps}: expected a whole number from 1 to {most}")


def _linspace(start: float, end: float, count: int) -> FloatArray:
    """float32 [count] as torch.linspace fills it: from both ends, one rounding an element."""
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
        return _linspace(start, end, count)
    if options["beta_schedule"] == "scaled_linear":
        roots = _linspace(start**0.5, end**0.5, count)
        return roots * roots
    ratios = (_cosine_alpha((i + 1) / count) / _cosine_alpha(i / count) for i in range(count))
    return np.array([min(1 - ratio, 0.999) for ratio in ratios], np.float32)


def cumulative_alphas(options: Options) -> FloatArray:
    """Product of 1 - beta up to every training timestep, float32 [num_train_timesteps]."""
    alphas = np.float32(1) - _betas(options)
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)
