"""What a scheduler is: a record of its options, and runs from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.schedulers.options import Option, Options
from fp4dit_onnx.values import whole

__all__ = ["FlowPlan", "Record", "Run", "Scheduler", "Solver", "check_steps", "needed"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Step = Callable[..., FloatArray]


class Solver(Protocol):
    """The state of a run.

    Attributes:
        index: of the step to come.
    """

    index: int

    def step(
        self, model_output: FloatArray, sample: FloatArray, noise: FloatArray | None = None
    ) -> FloatArray:
        """The next sample.

        Args:
            model_output: the model's prediction at the current timestep, float32 [B, C, H, W].
            sample: the current one, the same shape; not yet scaled for the model.
            noise: standard normal, the same shape; only stochastic schedulers look at it.
        """


@dataclass(frozen=True)
class Run:
    """One run from noise to data; `step` is called once for every timestep, in order.

    Attributes:
        timesteps: the timesteps at which the model is called, [steps]: int64, or float32 where
            they may lie between the training timesteps.
        solver: makes the next sample.
        levels: what data and noise are multiplied by in a sample at each timestep, float32 [steps]
            both.
        initial_scale: standard deviation of the noise that is the first sample.
        input_divisors: what a sample is divided by before the model is given it, float32 [steps];
            None for 1.
    """

    timesteps: IntArray | FloatArray
    solver: Solver
    levels: tuple[FloatArray, FloatArray]
    initial_scale: float = 1.0
    input_divisors: FloatArray | None = None

    @property
    def step(self) -> Step:
        """The next sample; see `Solver.step`."""
        return self.solver.step

    def noised(self, data: FloatArray, noise: FloatArray, index: int = 0) -> FloatArray:
        """The sample at timestep `index` of `data`, all three float32 [B, C, H, W]."""
        kept, added = (level[index] for level in self.levels)
        return np.asarray(kept * data + added * noise, np.float32)

    def since(self, index: int) -> Run:
        """What is left of a fresh run from timestep `index` on; multistep solvers begin anew there."""
        self.solver.index = index
        return replace(
            self,
            timesteps=self.timesteps[index:],
            levels=(self.levels[0][index:], self.levels[1][index:]),
            input_divisors=None if self.input_divisors is None else self.input_divisors[index:],
        )

    def model_input(self, index: int, sample: FloatArray) -> FloatArray:
        """What the model is given of the sample at timestep `index`."""
        return sample if self.input_divisors is None else sample / self.input_divisors[index]


@dataclass(frozen=True)
class FlowPlan:
    """What a pipeline tells a flow-matching scheduler about the run to come.

    Attributes:
        tokens: of the image in the transformer; dynamic shifting depends on it.
        from_one: whether sigmas fall evenly from 1 to 1 / steps before they are shifted, as the
            pipelines of Flux and Lumina2 ask; otherwise from the largest to the smallest of
            training, already shifted, as with SD3 and AuraFlow.
        empirical: whether dynamic shifting depends on the steps too, as the pipelines of FLUX.2 ask.
    """

    tokens: int
    from_one: bool
    empirical: bool = False


class Scheduler(Protocol):
    """A noise schedule and a solver, without the state of a run."""

    @property
    def stochastic(self) -> bool:
        """Whether every step needs noise."""

    def start(self, steps: int, plan: FlowPlan | None = None) -> Run:
        """A fresh run of `steps` steps.

        Args:
            steps: calls of the model.
            plan: what the run looks like; only flow matching asks for it.

        Raises:
            UsageError: `steps` is not between 1 and the number of training timesteps, or the
                options allow no such run.
        """


@dataclass(frozen=True)
class Record:
    """A scheduler of diffusers.

    Attributes:
        name: of diffusers' class.
        options: all that its scheduler_config.json may hold, by name.
        build: from checked options.
    """

    name: str
    options: Mapping[str, Option]
    build: Callable[[Options], Scheduler]


def check_steps(steps: int, options: Options, key: str = "num_train_timesteps") -> None:
    """Refuse a number of steps that no run has.

    Raises:
        UsageError: `steps` is not between 1 and the option `key`.
    """
    whole("steps", steps, 1, options[key])


def needed(noise: FloatArray | None, name: str) -> FloatArray:
    """`noise`, of a scheduler that cannot do without it."""
    if noise is None:
        raise UsageError(f"{name}: a step needs noise, and none was given")
    return noise
