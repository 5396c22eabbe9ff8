"""Trajectories of our schedulers and of diffusers', on a model that is a fixed function."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scheduler_configs import Config

from fp4dit_onnx.runtime.schedulers import FlowPlan, scheduler_from_config

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties' deprecations at import
    diffusers = pytest.importorskip("diffusers")

FloatArray = npt.NDArray[np.float32]

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
    config: Config, steps: int, plan: FlowPlan | None = None, first: int = 0
) -> tuple[list[float], list[FloatArray]]:
    """From noise, or with `first` from data noised to that timestep of the run."""
    scheduler = scheduler_from_config(config)
    run, model = scheduler.start(steps, plan), random_model(1)
    sample = start(2) * np.float32(run.initial_scale)
    if first:
        run = run.since(first)
        sample = run.noised(start(3), start(2))
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
    config: Config, steps: int, monkeypatch: pytest.MonkeyPatch, first: int = 0, **plan: Any
) -> tuple[list[float], list[FloatArray]]:
    values = {k: v for k, v in config.items() if not k.startswith("_")}
    scheduler = getattr(diffusers, config["_class_name"])(**values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(steps, **plan)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    model, sample = random_model(1), torch.from_numpy(start(2)) * scheduler_scale(scheduler)
    times = scheduler.timesteps[first:]
    if first:
        add = getattr(scheduler, "scale_noise", None) or scheduler.add_noise
        given = [torch.from_numpy(start(seed)) for seed in (3, 2)]
        order = (
            (given[0], times[:1], given[1])
            if hasattr(scheduler, "scale_noise")
            else (*given, times[:1])
        )
        sample = add(*order)
    states = [sample.numpy()]
    module = sys.modules[type(scheduler).__module__]
    for index, timestep in enumerate(times):
        noise = torch.from_numpy(noise_at(index))
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, noise=noise, **__: noise)
        given = sample
        if hasattr(scheduler, "scale_model_input"):
            given = scheduler.scale_model_input(sample, timestep)
        output = torch.from_numpy(model(given.numpy(), int(timestep)))
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        states.append(sample.numpy())
    return [float(t) for t in times], states


def check(config: Config, steps: int, monkeypatch: pytest.MonkeyPatch, first: int = 0) -> None:
    times, states = our_trajectory(config, steps, first=first)
    expected_times, expected = diffusers_trajectory(config, steps, monkeypatch, first)
    assert times == expected_times
    error = worst_relative_error(states, expected)
    assert error <= TOLERANCE, f"{config}, {steps} steps: {error:.2e}"
