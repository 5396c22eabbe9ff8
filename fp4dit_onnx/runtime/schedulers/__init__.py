"""Noise schedulers in numpy: the trajectories of diffusers' schedulers without torch.

A scheduler is built from ``scheduler_config.json``; `Scheduler.start` gives a `Run`: its timesteps,
and the steps. Adding one is a file with a `Record` and a line in `RECORDS`.
"""

from __future__ import annotations

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.schedulers.ancestral import DDIM, DDPM
from fp4dit_onnx.runtime.schedulers.dpm_solver import DPM_SOLVER_MULTISTEP
from fp4dit_onnx.runtime.schedulers.euler import EULER, EULER_ANCESTRAL
from fp4dit_onnx.runtime.schedulers.flow_matching import FLOW_MATCH_EULER
from fp4dit_onnx.runtime.schedulers.lcm import LCM
from fp4dit_onnx.runtime.schedulers.options import Options, checked_options
from fp4dit_onnx.runtime.schedulers.scheduler import FlowPlan, Record, Run, Scheduler
from fp4dit_onnx.runtime.schedulers.unipc import UNIPC_MULTISTEP

__all__ = ["SCHEDULERS", "FlowPlan", "Record", "Run", "Scheduler", "scheduler_from_config"]

RECORDS = (
    DPM_SOLVER_MULTISTEP,
    UNIPC_MULTISTEP,
    EULER,
    EULER_ANCESTRAL,
    DDIM,
    DDPM,
    LCM,
    FLOW_MATCH_EULER,
)
SCHEDULERS = {record.name: record for record in RECORDS}
"""diffusers' class name -> its record."""


def scheduler_from_config(config: Options) -> Scheduler:
    """The scheduler that the contents of a ``scheduler_config.json`` describe.

    Raises:
        UsageError: an unknown class, or an option whose value is not supported.
    """
    name = str(config.get("_class_name"))
    record = SCHEDULERS.get(name)
    if record is None:
        raise UsageError(
            f"scheduler {name} is not supported: expected one of {', '.join(SCHEDULERS)}"
        )
    others = {key for each in RECORDS for key in each.options}
    return record.build(checked_options(name, config, record.options, others))
