"""Options of schedulers: every combination is diffusers' trajectory, or refused."""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from scheduler_configs import (
    BETAS,
    PREDICTIONS,
    SPACINGS,
    Config,
    ancestral,
    ddim,
    ddpm,
    dpm,
    euler,
    flow,
    lcm,
    unipc,
)
from trajectories import (
    TOLERANCE,
    check,
    diffusers,
    diffusers_trajectory,
    our_trajectory,
    start,
    worst_relative_error,
)

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.schedulers import SCHEDULERS, scheduler_from_config
from fp4dit_onnx.runtime.schedulers import ancestral as ancestral_module
from fp4dit_onnx.runtime.schedulers import dpm_solver as dpm_module
from fp4dit_onnx.runtime.schedulers import euler as euler_module
from fp4dit_onnx.runtime.schedulers import lcm as lcm_module
from fp4dit_onnx.runtime.schedulers import unipc as unipc_module
from fp4dit_onnx.runtime.schedulers.training import cumulative_alphas

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BOTH = (False, True)
LAST = {"final_sigmas_type": "sigma_min"}
ENDS = ("zero", "sigma_min")
GRIDS: dict[str, tuple[Any, dict[str, tuple[Any, ...]]]] = {
    "Euler": (
        euler,
        {
            "prediction_type": PREDICTIONS,
            "timestep_spacing": SPACINGS,
            "use_karras_sigmas": BOTH,
            "final_sigmas_type": ENDS,
            "rescale_betas_zero_snr": BOTH,
        },
    ),
    "Euler, sigmas": (
        euler,
        {
            "interpolation_type": ("linear", "log_linear"),
            "use_exponential_sigmas": BOTH,
            "sigma_min": (None, 0.05),
            "sigma_max": (None, 80.0),
            "steps_offset": (0, 1),
        },
    ),
    "Euler ancestral": (
        ancestral,
        {
            "prediction_type": PREDICTIONS[:2],
            "timestep_spacing": SPACINGS,
            "rescale_betas_zero_snr": BOTH,
        },
    ),
    "LCM": (
        lcm,
        {
            "prediction_type": PREDICTIONS,
            "beta_schedule": ("linear", "scaled_linear"),
            "clip_sample": BOTH,
            "timestep_scaling": (10.0, 1.0),
            "original_inference_steps": (50, 100),
        },
    ),
    "zero SNR": (
        ddim,
        {
            "prediction_type": PREDICTIONS,
            "timestep_spacing": SPACINGS,
            "rescale_betas_zero_snr": (True,),
            "set_alpha_to_one": BOTH,
        },
    ),
    "DDPM, zero SNR": (
        ddpm,
        {
            "prediction_type": PREDICTIONS,
            "timestep_spacing": SPACINGS,
            "rescale_betas_zero_snr": BOTH,
            "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
        },
    ),
    "DPM-Solver++, sigmas": (
        dpm,
        {
            "solver_order": (2, 3),
            "rescale_betas_zero_snr": BOTH,
            "use_lu_lambdas": BOTH,
            "use_exponential_sigmas": BOTH,
            "timestep_spacing": SPACINGS[1:],
        },
    ),
    "UniPC": (
        unipc,
        {
            "prediction_type": PREDICTIONS,
            "solver_order": (1, 2, 3),
            "solver_type": ("bh1", "bh2"),
            "predict_x0": BOTH,
            "lower_order_final": BOTH,
            "final_sigmas_type": ENDS,
        },
    ),
    "UniPC, sigmas": (
        unipc,
        {
            "timestep_spacing": SPACINGS,
            "solver_order": (2, 3),
            "use_karras_sigmas": BOTH,
            "disable_corrector": ([], [0, 2]),
            "rescale_betas_zero_snr": BOTH,
            "final_sigmas_type": ENDS,
        },
    ),
    "UniPC, bounds": (
        unipc,
        {
            "use_karras_sigmas": BOTH,
            "use_exponential_sigmas": BOTH,
            "sigma_min": (None, 0.1),
            "sigma_max": (None, 50.0),
        },
    ),
    "flow matching": (
        flow,
        {
            "shift": (1.0, 3.0),
            "use_karras_sigmas": BOTH,
            "use_exponential_sigmas": BOTH,
            "stochastic_sampling": BOTH,
            "shift_terminal": (None, 0.1),
        },
    ),
}
ILL_CONDITIONED = 1e-4
"""Where roundings of 6e-8 grow a hundredfold, in diffusers as here: the noise is what is left of a
sample after its data, divided by as little as sigma_min; or what stays of a sample beside fresh
noise, after a step from sigma 4096, is the root of a difference of equals."""


def tolerance(config: Config) -> float:
    from_data = config.get("prediction_type") == "sample"
    divides = config["_class_name"] == "DDIMScheduler" or config.get("predict_x0") is False
    fresh = config["_class_name"].startswith("EulerA") and config.get("rescale_betas_zero_snr")
    return ILL_CONDITIONED if (from_data and divides) or fresh else TOLERANCE


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # diffusers' own, where it gives NaN
@pytest.mark.parametrize("name", GRIDS)
def test_every_combination_of_options_is_diffusers_or_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, choices = GRIDS[name]
    compared = 0
    for values in itertools.product(*choices.values()):
        config = make(**dict(zip(choices, values, strict=True)))
        for steps in (1, 2, 4, 7, 20):
            reason = why_refused(config, steps)
            if reason is not None:
                with pytest.raises(UsageError, match=reason):
                    our_trajectory(config, steps)
                continue
            if config.get("rescale_betas_zero_snr"):
                use_the_table_of(config, monkeypatch)
            times, states = our_trajectory(config, steps)
            monkeypatch.undo()
            expected_times, expected = diffusers_trajectory(config, steps, monkeypatch)
            np.testing.assert_allclose(times, expected_times, rtol=2e-7)
            worst = worst_relative_error(states, expected)
            assert worst <= tolerance(config), f"{config}, {steps} steps: {worst:.2e}"
            compared += 1
    assert compared >= 40


def use_the_table_of(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give ours the rescaled table of diffusers' scheduler.

    Tables agree to 2e-5 (test_table_is_diffusers_bit_for_bit), because torch rounds roots to a
    neighbour on some processors; next to the data that is worth 1e-3 of a sigma.
    """
    values = {k: v for k, v in config.items() if not k.startswith("_")}
    alphas = getattr(diffusers, config["_class_name"])(**values).alphas_cumprod
    table, sigmas = alphas.numpy(), (((1 - alphas) / alphas) ** 0.5).numpy()
    for module in (ancestral_module, dpm_module, euler_module, lcm_module, unipc_module):
        for name, value in (("cumulative_alphas", table), ("training_sigmas", sigmas)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda _, value=value: value.copy())


def why_refused(config: Config, steps: int) -> str | None:
    """What a refusal must name: options that diffusers refuses, or ends without finite numbers."""
    if config.get("use_karras_sigmas") and config.get("use_exponential_sigmas"):
        return "use_karras_sigmas and use_exponential_sigmas"
    if config.get("shift_terminal") and steps == 1:
        return "shift_terminal"
    spacing = config.get("timestep_spacing")
    from_noise = spacing == "trailing" or (spacing == "linspace" and steps > 1)
    inverts = config["_class_name"] in ("DDIMScheduler", "DDPMScheduler")
    epsilon = config.get("prediction_type") == "epsilon"
    if config.get("rescale_betas_zero_snr") and epsilon and inverts and from_noise:
        return "no signal"
    ends = config.get("final_sigmas_type", "zero") == "zero"
    if config["_class_name"] == "UniPCMultistepScheduler" and ends:
        finite = config.get("predict_x0", True) and config.get("solver_type", "bh2") == "bh2"
        first = config.get("lower_order_final", True) or config["solver_order"] == 1 or steps == 1
        if not (finite and first):
            return "is not finite"
    return None


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("rescaled", [False, True])
def test_table_is_diffusers_bit_for_bit(betas: Config, rescaled: bool) -> None:
    options = {k: v for k, v in betas.items() if k != "lambda_min_clipped"}
    options["rescale_betas_zero_snr"] = rescaled
    ours: Any = scheduler_from_config(ddim(**options))
    theirs = diffusers.DDIMScheduler(**options).alphas_cumprod.numpy()
    found = cumulative_alphas(ours.options)
    if rescaled:  # torch's square roots may be a unit off
        np.testing.assert_allclose(found, theirs, rtol=2e-5)
        assert (found[-1], theirs[-1]) == (0, 0)
    else:
        np.testing.assert_array_equal(found, theirs)


def test_defaults_are_diffusers() -> None:
    for name in SCHEDULERS:
        options = scheduler_from_config({"_class_name": name}).options  # type: ignore[attr-defined]
        defaults = dict(getattr(diffusers, name)().config)
        assert options == {k: v for k, v in defaults.items() if not k.startswith("_")}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (dpm(algorithm_type="sde-dpmsolver++"), ["algorithm_type", "sde-dpm", "'dpmsolver++'"]),
        (dpm(thresholding=True), ["thresholding", "True", "False"]),
        (dpm(use_flow_sigmas="yes"), ["use_flow_sigmas", "yes"]),
        (ddim(prediction_type="flow_prediction"), ["prediction_type", "'v_prediction'"]),
        (dpm(beta_schedule="sigmoid"), ["beta_schedule", "'sigmoid'", "'scaled_linear'"]),
        (dpm(solver_order=4), ["solver_order", "4", "1, 2, 3"]),
        (dpm(warp_sigmas=True), ["warp_sigmas", "True"]),
        (ddpm(variance_type="learned_range"), ["variance_type", "'fixed_small'"]),
        (flow(use_beta_sigmas=True), ["use_beta_sigmas", "False"]),
        (flow(invert_sigmas=True), ["invert_sigmas"]),
        ({"_class_name": "PNDMScheduler"}, ["PNDM", "DDIMScheduler", "UniPCMultistepScheduler"]),
    ],
)
def test_refuses_what_it_does_not_support(config: Config, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        scheduler_from_config(config)
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message


def test_options_of_other_classes_pass() -> None:
    """Diffusers leaves them in the file when a scheduler is made from another's, and ignores them."""
    scheduler_from_config(dpm(_diffusers_version="0.1", skip_prk_steps=True, foreign=None))
    for old, new in itertools.permutations(SCHEDULERS, 2):
        scheduler = getattr(diffusers, old)()
        exchanged = getattr(diffusers, new).from_config(scheduler.config)
        config = json.loads(exchanged.to_json_string())
        ours: Any = scheduler_from_config(config)
        theirs = {k: exchanged.config[k] for k in ours.options}
        assert ours.options == theirs, (old, new)


@pytest.mark.parametrize(
    ("config", "alike"),
    [
        (dpm(solver_type="bh2"), dpm(solver_type="midpoint")),
        (dpm(algorithm_type="deis", **LAST), dpm(**LAST)),
        (unipc(solver_type="midpoint"), unipc(solver_type="bh2")),
        (euler(prediction_type="original_sample"), euler(prediction_type="sample")),
    ],
)
def test_values_that_diffusers_takes_for_others(
    config: Config, alike: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(config, 7, monkeypatch)
    assert our_trajectory(config, 7)[0] == our_trajectory(alike, 7)[0]
    assert worst_relative_error(our_trajectory(config, 7)[1], our_trajectory(alike, 7)[1]) == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (dpm(num_train_timesteps=10**15), "num_train_timesteps = 1000000000000000"),
        (dpm(num_train_timesteps="many"), "num_train_timesteps = 'many': expected a whole number"),
        (ddim(beta_start=math.nan), "beta_start = nan"),
        (ddim(trained_betas="x"), "trained_betas: expected a list"),
        (ddim(trained_betas=[0.1, None]), "trained_betas = None: expected a number"),
        (flow(shift=0), "shift = 0"),
        (unipc(disable_corrector=3), "disable_corrector = 3: expected a list"),
        (lcm(original_inference_steps=0), "original_inference_steps = 0"),
        (dpm(solver_order=[2]), "solver_order = [2]"),
    ],
)
def test_options_of_other_types_are_refused(config: Config, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        scheduler_from_config(config)


def test_lcm_has_no_more_steps_than_it_was_distilled_with() -> None:
    with pytest.raises(UsageError, match="steps = 51: expected a whole number from 1 to 50"):
        scheduler_from_config(lcm()).start(51)
    with pytest.raises(UsageError, match="original_inference_steps = 2000: expected at most"):
        scheduler_from_config(lcm(original_inference_steps=2000)).start(2)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_refuses_steps_out_of_range(steps: int) -> None:
    for name in SCHEDULERS:
        with pytest.raises(UsageError, match=f"steps = {steps}"):
            scheduler_from_config({"_class_name": name}).start(steps)


@pytest.mark.parametrize("make", [ddpm, lcm, ancestral])
def test_stochastic_schedulers_refuse_to_run_without_noise(make: Any) -> None:
    scheduler = scheduler_from_config(make())
    assert scheduler.stochastic
    with pytest.raises(UsageError, match=f"{make()['_class_name']}: a step needs noise"):
        scheduler.start(5).step(start(1), start(2))
