"""A run of a family's pipeline: the timesteps of its scheduler, as its transformer takes them."""

from __future__ import annotations

import numpy as np

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families import Family
from fp4dit_onnx.runtime.schedulers import FlowPlan, Run, Scheduler

__all__ = ["start_run"]


def start_run(family: Family, scheduler: Scheduler, steps: int, tokens: int) -> Run:
    """A fresh run of `scheduler` in the pipeline of `family`.

    Args:
        family: whose transformer is told the timesteps.
        scheduler: of any kind.
        steps: calls of the transformer.
        tokens: of the image; see `FlowPlan`.

    Raises:
        UsageError: see `Scheduler.start`; or timesteps between whole ones, of a transformer that
            takes integer timesteps.
    """
    run = scheduler.start(steps, FlowPlan(tokens, family.sigmas_from_one, family.empirical_shift))
    parts = np.asarray(run.timesteps) % 1
    if np.issubdtype(np.dtype(family.timestep.dtype), np.integer) and parts.any():
        between = run.timesteps[np.flatnonzero(parts)[0]]
        raise UsageError(
            f"the scheduler asks for the timestep {between:g}, and this transformer takes integer "
            "timesteps: expected timestep_spacing leading or trailing, and no spacing by sigmas, in "
            "scheduler_config.json"
        )
    return run
