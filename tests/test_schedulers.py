"""The numpy schedulers against diffusers', whole trajectories."""

from __future__ import annotations

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
    diffusers_trajectory,
    our_trajectory,
    worst_relative_error,
)

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.schedulers import FlowPlan, scheduler_from_config

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

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


FLOWING = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("shift", [1.0, 3.0])  # Sana's
def test_dpm_solver_flows(
    shift: float, order: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(dpm(**FLOWING, flow_shift=shift, solver_order=order), steps, monkeypatch)


@pytest.mark.parametrize("key", FLOWING)
def test_dpm_solver_flows_altogether_or_not(key: str) -> None:
    with pytest.raises(UsageError, match=r"use_flow_sigmas is .* and prediction_type is"):
        scheduler_from_config(dpm(**{key: FLOWING[key]})).start(4)


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


@pytest.mark.parametrize("first", [1, 12, 19])
@pytest.mark.parametrize(
    "config",
    [
        dpm(solver_order=3, lower_order_final=True),
        unipc(solver_order=3),
        unipc(disable_corrector=[12]),
        euler(),
        ancestral(),
        ddim(),
        ddpm(),
        lcm(),
        flow(shift=3.0),
    ],
)
def test_runs_that_begin_with_an_image(
    config: Config, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data noised to a timestep of the run, and the steps from there."""
    check(config, 20, monkeypatch, first)


def check_flow(
    config: Config, steps: int, plan: FlowPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against diffusers told what its pipelines tell it: sigmas, and the shift of the size."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    theirs: Config = {"sigmas": np.linspace(1, 1 / steps, steps)} if plan.from_one else {}
    if plan.empirical:
        theirs["mu"] = compute_empirical_mu(plan.tokens, steps)
    elif config.get("use_dynamic_shifting"):
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


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("tokens", [1024, 4300, 5000])
def test_flow_matching_of_flux_2(tokens: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = flow(shift=3.0, use_dynamic_shifting=True)
    check_flow(config, steps, FlowPlan(tokens, True, empirical=True), monkeypatch)


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


def test_comparator_fails_where_it_should() -> None:
    right = [np.array([1.0, -2.0], np.float32), np.array([0.5, 0.25], np.float32)]
    assert worst_relative_error(right, right) == 0
    for wrong in ([-right[0], right[1]], [right[0], right[1] * np.float32(1.001)], right[:1]):
        assert worst_relative_error(wrong, right) > TOLERANCE
    poisoned = [right[0], np.array([np.nan, 0.25], np.float32)]
    assert worst_relative_error(poisoned, right) > TOLERANCE
