"""The numpy schedulers against diffusers', whole trajectories."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.schedulers import SCHEDULERS, FlowPlan, scheduler_from_config
from fp4dit_onnx.runtime.schedulers import ancestral as ancestral_module
from fp4dit_onnx.runtime.schedulers import dpm_solver as dpm_module
from fp4dit_onnx.runtime.schedulers import euler as euler_module
from fp4dit_onnx.runtime.schedulers import lcm as lcm_module
from fp4dit_onnx.runtime.schedulers import unipc as unipc_module
from fp4dit_onnx.runtime.schedulers.training import cumulative_alphas

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties' deprecations at import
    diffusers = pytest.importorskip("diffusers")

FloatArray = npt.NDArray[np.float32]
Config = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (2, 4, 6, 6)

# Both sides round to float32 after every operation and run the same operations, so a step differs
# by a few epsilon = 6e-8 of its largest term, and by the last bit of exp and log, which the step
# h = 0.05 .. 0.3 between two log SNRs of up to 10 (last bit 5e-7) turns into 1e-6 .. 1e-5 of the
# second- and third-order corrections, themselves a fraction of the sample. Errors of 50 steps add
# up at random or are forgotten (the model output pulls back). The requirement is 1e-5.
TOLERANCE = 1e-5


def worst_relative_error(found: list[FloatArray], expected: list[FloatArray]) -> float:
    """The largest |difference| over a trajectory, each state relative to what it was computed from.

    That is the largest value of the state itself and of the one before: a step from sigma 4096 to
    the data subtracts numbers of that size.
    """
    if len(found) != len(expected):
        return math.inf
    sizes = [float(np.abs(state).max()) for state in expected]
    errors = [
        float(np.abs(a - b).max() / max(sizes[max(i - 1, 0) : i + 1]))
        for i, (a, b) in enumerate(zip(found, expected, strict=True))
    ]
    return math.inf if any(math.isnan(e) for e in errors) else max(errors)


def random_model(seed: int) -> Any:
    """A fixed smooth function of sample and timestep: channels mixed, then squashed."""
    generator = np.random.default_rng(seed)
    mix = generator.standard_normal((SHAPE[1], SHAPE[1])).astype(np.float32) / 2
    phase = generator.standard_normal((SHAPE[1], 1, 1)).astype(np.float32)

    def model(sample: FloatArray, timestep: int) -> FloatArray:
        mixed = np.einsum("oc,bchw->bohw", mix, sample)
        result = np.tanh(mixed + phase * np.float32(timestep / 300))
        return np.asarray(result, np.float32)

    return model


def start(seed: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def noise_at(index: int) -> FloatArray:
    return np.random.default_rng([7, index]).standard_normal(SHAPE).astype(np.float32)


def our_trajectory(
    config: Config, steps: int, plan: FlowPlan | None = None
) -> tuple[list[float], list[FloatArray]]:
    scheduler = scheduler_from_config(config)
    run, model = scheduler.start(steps, plan), random_model(1)
    sample = start(2) * np.float32(run.initial_scale)
    states = [sample]
    for index, timestep in enumerate(run.timesteps):
        noise = noise_at(index) if scheduler.stochastic else None
        output = model(run.model_input(index, sample), int(timestep))
        sample = run.step(output, sample, noise)
        assert sample.dtype == np.float32
        states.append(sample)
    return [float(t) for t in run.timesteps], states


def scheduler_scale(scheduler: Any) -> float:
    """What diffusers' pipelines multiply the first noise by."""
    return float(getattr(scheduler, "init_noise_sigma", 1))


def diffusers_trajectory(
    config: Config, steps: int, monkeypatch: pytest.MonkeyPatch, **plan: Any
) -> tuple[list[float], list[FloatArray]]:
    values = {k: v for k, v in config.items() if not k.startswith("_")}
    scheduler = getattr(diffusers, config["_class_name"])(**values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(steps, **plan)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    model, sample = random_model(1), torch.from_numpy(start(2)) * scheduler_scale(scheduler)
    states = [sample.numpy()]
    module = sys.modules[type(scheduler).__module__]
    for index, timestep in enumerate(scheduler.timesteps):
        noise = torch.from_numpy(noise_at(index))
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, noise=noise, **__: noise)
        given = sample
        if hasattr(scheduler, "scale_model_input"):
            given = scheduler.scale_model_input(sample, timestep)
        output = torch.from_numpy(model(given.numpy(), int(timestep)))
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        states.append(sample.numpy())
    return [float(t) for t in scheduler.timesteps], states


def check(config: Config, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    times, states = our_trajectory(config, steps)
    expected_times, expected = diffusers_trajectory(config, steps, monkeypatch)
    assert times == expected_times
    error = worst_relative_error(states, expected)
    assert error <= TOLERANCE, f"{config}, {steps} steps: {error:.2e}"


def dpm(**options: Any) -> Config:
    return {"_class_name": "DPMSolverMultistepScheduler", **options}


def ddim(**options: Any) -> Config:
    return {"_class_name": "DDIMScheduler", "clip_sample": False, **options}


def ddpm(**options: Any) -> Config:
    return {"_class_name": "DDPMScheduler", "clip_sample": False, **options}


def flow(**options: Any) -> Config:
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", **options}


PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("linspace", "leading", "trailing")
BETAS: tuple[Config, ...] = (
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    {"trained_betas": np.linspace(1e-3, 0.03, 400).tolist(), "num_train_timesteps": 400},
)
STEPS = (1, 2, 5, 14, 15, 20, 50)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpm_solver_orders(
    prediction: str, order: int, solver_type: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dpm(solver_order=order, solver_type=solver_type, prediction_type=prediction)
    check(config, steps, monkeypatch)


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("betas", BETAS)
def test_dpm_solver_schedules(
    betas: Config, spacing: str, karras: bool, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dpm(timestep_spacing=spacing, use_karras_sigmas=karras, steps_offset=1, **betas)
    check(config, steps, monkeypatch)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("euler", [False, True])
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver_ends(
    order: int,
    euler: bool,
    lower: bool,
    final: str,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = dpm(
        solver_order=order, euler_at_final=euler, lower_order_final=lower, final_sigmas_type=final
    )
    check(config, steps, monkeypatch)


@pytest.mark.parametrize("steps", [1, 7, 20, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("make", [ddim, ddpm])
def test_ddim_and_ddpm(
    make: Any, spacing: str, prediction: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(timestep_spacing=spacing, prediction_type=prediction)
    check(config, steps, monkeypatch)


@pytest.mark.parametrize(
    "config",
    [
        ddim(set_alpha_to_one=False, steps_offset=1),
        ddim(clip_sample=True, clip_sample_range=0.8),
        ddpm(clip_sample=True, clip_sample_range=0.8),
        ddpm(variance_type="fixed_large"),
        ddpm(  # Hunyuan-DiT's
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.02,
            prediction_type="v_prediction",
            steps_offset=1,
        ),
    ],
)
def test_ddim_and_ddpm_options(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    check(config, 20, monkeypatch)


def euler(**options: Any) -> Config:
    return {"_class_name": "EulerDiscreteScheduler", **options}


def ancestral(**options: Any) -> Config:
    return {"_class_name": "EulerAncestralDiscreteScheduler", **options}


def lcm(**options: Any) -> Config:
    return {"_class_name": "LCMScheduler", **options}


def unipc(**options: Any) -> Config:
    return {"_class_name": "UniPCMultistepScheduler", **options}


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


def hunyuan(beta_end: float) -> Config:
    return ddpm(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=beta_end,
        prediction_type="v_prediction",
        steps_offset=1,
    )


LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
OFFICIAL = {
    "PixArt-alpha and PixArt-Sigma": dpm(**LINEAR, algorithm_type="dpmsolver++"),
    "Hunyuan-DiT 1.1": hunyuan(0.03),
    "Hunyuan-DiT 1.2": hunyuan(0.018),
    "DiT": ddim(**LINEAR, set_alpha_to_one=True, steps_offset=0),
    "SD3": flow(shift=3.0),
    "AuraFlow": flow(shift=1.73),
    "PixArt-LCM": lcm(**LINEAR),
    "PixArt-DMD": ddpm(**LINEAR, steps_offset=1),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_schedulers_of_the_families(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(OFFICIAL[name], 20, monkeypatch)


def check_flow(
    config: Config, steps: int, plan: FlowPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against diffusers told what its pipelines tell it: sigmas, and the shift of the size."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    theirs: Config = {"sigmas": np.linspace(1, 1 / steps, steps)} if plan.from_one else {}
    if config.get("use_dynamic_shifting"):
        theirs["mu"] = calculate_shift(plan.tokens, base_shift=0.5, max_shift=1.15)
    times, states = our_trajectory(config, steps, plan)
    expected_times, expected = diffusers_trajectory(config, steps, monkeypatch, **theirs)
    np.testing.assert_allclose(times, expected_times, rtol=2e-7)  # two roundings of float32
    assert worst_relative_error(states, expected) <= TOLERANCE


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("tokens", [256, 1024, 5000])
@pytest.mark.parametrize("from_one", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        flow(shift=1.0),  # Flux schnell
        flow(shift=6.0),  # Lumina2
        flow(shift=3.0, use_dynamic_shifting=True),  # Flux dev
        flow(use_dynamic_shifting=True, time_shift_type="linear"),
    ],
)
def test_flow_matching(
    config: Config, from_one: bool, tokens: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_flow(config, steps, FlowPlan(tokens, from_one), monkeypatch)


def test_flow_matching_ends_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = flow(use_dynamic_shifting=True, shift_terminal=0.1)
    check_flow(config, 20, FlowPlan(2000, from_one=True), monkeypatch)


def test_flow_matching_depends_on_every_part_of_its_plan() -> None:
    config = flow(shift=3.0, use_dynamic_shifting=True)
    start = scheduler_from_config(config).start
    usual = start(20, FlowPlan(1024, from_one=True)).timesteps
    for plan in (FlowPlan(1056, from_one=True), FlowPlan(1024, from_one=False)):
        assert np.abs(start(20, plan).timesteps / usual - 1).max() > 1e-3
    with pytest.raises(UsageError, match="expected a FlowPlan"):
        start(20)
    lengths = {"base_image_seq_len": 4096, "max_image_seq_len": 4096}
    equal = scheduler_from_config(config | lengths)
    with pytest.raises(UsageError, match="are both 4096: expected two lengths"):
        equal.start(20, FlowPlan(1024, from_one=True))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("PixArt-alpha and PixArt-Sigma", {"solver_type": "heun"}),
        ("Hunyuan-DiT 1.1", {"steps_offset": 0}),
        ("Hunyuan-DiT 1.2", {"prediction_type": "epsilon"}),
        ("DiT", {"timestep_spacing": "trailing"}),
        ("SD3", {"shift": 3.01}),
    ],
)
def test_another_option_is_another_trajectory(
    name: str, change: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, found = our_trajectory(OFFICIAL[name] | change, 20)
    _, expected = diffusers_trajectory(OFFICIAL[name], 20, monkeypatch)
    assert worst_relative_error(found, expected) > 10 * TOLERANCE


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
        (dpm(use_flow_sigmas=True), ["use_flow_sigmas", "True"]),
        (dpm(prediction_type="flow_prediction"), ["prediction_type", "'v_prediction'"]),
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


def test_comparator_fails_where_it_should() -> None:
    right = [np.array([1.0, -2.0], np.float32), np.array([0.5, 0.25], np.float32)]
    assert worst_relative_error(right, right) == 0
    for wrong in ([-right[0], right[1]], [right[0], right[1] * np.float32(1.001)], right[:1]):
        assert worst_relative_error(wrong, right) > TOLERANCE
    poisoned = [right[0], np.array([np.nan, 0.25], np.float32)]
    assert worst_relative_error(poisoned, right) > TOLERANCE
