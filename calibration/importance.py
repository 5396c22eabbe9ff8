"""How much an error of the network at each denoising step changes the final latents.

Reconstruction treats all timesteps alike; the sampler does not. A step's importance is measured: the
network rounded to nearest takes that one step in a trajectory of the float network, and the change of
the final latents over the error of its guided prediction is what a unit of error costs there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fp4dit_onnx.calibration.simulate import simulated
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families.guidance import Guided
from fp4dit_onnx.network.execution import host
from fp4dit_onnx.spec.state import QuantizedState
from fp4dit_onnx.system.resources import return_memory

__all__ = ["step_importance", "step_shares"]

PROBES = 8
"""Steps that are measured; between them importance is interpolated on a logarithmic scale."""
FLOOR = 0.01
"""Least importance over the largest: a sampler with other steps is never far off."""


class _Trajectory:
    """Replaces the network's forward: runs a trajectory, or replays it up to a disturbed step.

    Args:
        forward: the float network's own.
        disturbed: the same of the network rounded to nearest.
        guidance: of the sampler.
    """

    def __init__(
        self, forward: Callable[..., Any], disturbed: Callable[..., Any], guidance: Guided
    ) -> None:
        self._forward, self._disturbed, self._guidance = forward, disturbed, guidance
        self._outputs: list[Any] = []
        self._call, self._step = 0, -1
        self.error = torch.empty(0)  # [P], of each image

    def start(self, step: int) -> None:
        """Replay the first trajectory before this step, disturb the step, and continue from there."""
        self._call, self._step = 0, step

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call, self._call = self._call, self._call + 1
        if self._step < 0:
            self._outputs.append(self._forward(*args, **kwargs))
            return self._outputs[-1]
        if call < self._step:
            return self._outputs[call]
        if call > self._step:
            return self._forward(*args, **kwargs)
        result = self._disturbed(*args, **kwargs)
        difference = self._guidance.combined(result[0].float() - self._outputs[call][0].float())
        self.error = host(difference.square().flatten(1).mean(dim=1))
        return result


@torch.no_grad()
def step_importance(
    network: torch.nn.Module,
    state: QuantizedState,
    sample: Callable[[], torch.Tensor],
    steps: int,
    guidance: Guided,
    on_probe: Callable[[float], object] = lambda share: None,
) -> npt.NDArray[np.float64]:
    """Importance of each step, the largest 1.

    Args:
        network: the float transformer.
        state: its layers, rounded to nearest.
        sample: generates one batch of images, always the same, and returns the final latents.
        steps: of the sampler.
        guidance: of the sampler.
        on_probe: told after each run of the sampler which share of the network's calls it was.

    Returns:
        float64 [steps].

    Raises:
        UsageError: the float model's latents are not finite.
    """
    forward = network.forward

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        with simulated(network, state):
            return forward(*args, **kwargs)

    trajectory = _Trajectory(forward, disturbed, guidance)
    network.forward = trajectory
    probes = np.unique(np.linspace(0, steps - 1, PROBES).round().astype(int))
    calls = np.array([steps, *(steps - probes)])

    def sampled(run: int) -> torch.Tensor:
        latents = host(sample())
        return_memory()
        on_probe(float(calls[run] / calls.sum()))
        return latents

    try:
        reference = sampled(0)
        if not bool(torch.isfinite(reference).all()):
            raise UsageError(
                "the float model's own latents hold NaN or infinity after sampling; check the "
                "checkpoint and the sampling settings"
            )
        found = []
        for run, step in enumerate(probes.tolist(), 1):
            trajectory.start(step)
            change = (sampled(run) - reference).square().flatten(1).mean(dim=1)
            ratio = change.clamp(min=1e-30) / trajectory.error.clamp(min=1e-30)
            found.append(float(ratio.median()))  # an image may tip over into another: no mean
    finally:
        del network.forward  # the class's own again
    logarithm = np.interp(np.arange(steps), probes, np.log(found))
    importance: npt.NDArray[np.float64] = np.exp(logarithm - logarithm.max())
    return np.maximum(importance, FLOOR)


def step_shares(importance: npt.ArrayLike, even: float) -> npt.NDArray[np.float64]:
    """Share of the samples that each step gets: `even` of them alike, the others by importance."""
    weight = np.asarray(importance, np.float64)
    shares: npt.NDArray[np.float64] = even / weight.size + (1 - even) * weight / weight.sum()
    return shares
