"""An export that keeps to a time: what is timed first, and what is picked from that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from fp4dit_onnx.bundle.manifest import Sampling
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.exporting.plan import Plan
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.exporting.sampling_plan import calibration_prompts
from fp4dit_onnx.system.progress import Reporter, duration

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.pacing import Effort, Speed
    from fp4dit_onnx.calibration.timing import Pace
    from fp4dit_onnx.calibration.work import Work
    from fp4dit_onnx.network.network import Network

__all__ = ["Paced", "paced"]

TIMED_PROMPTS = 2
SIMULATED = 4
"""Runs of the float network that one with and one without quantization take together."""
MEASURED_ROWS = 40
"""Samples on which the whole model is compared with the float network."""
REWRITING, REPORTING = 0.4, 2.0
"""What rewriting and writing the graph takes, and the report's measuring of speed, where tracing it took
1: all of them are the work of one core that builds graphs."""
REPORTED_IMAGES = 10
"""Images of the report: the float model's, the bundle's, and those whose activations are looked at."""
PICKED = "picked"
"""What is kept in the work folder, so that a resumed run picks the same."""


@dataclass(frozen=True)
class Paced:
    """What is calibrated, with how much data, and who settles the rest."""

    planned: Plan
    sampling: Sampling
    pace: Pace


def paced(
    planned: Plan,
    network: Network,
    pipeline: Any,
    work: Work,
    left: Callable[[], float],
    tracing: float,
    report: Reporter,
) -> Paced:
    """Time the machine, and pick the data of a calibration that keeps to `request.time`.

    Args:
        planned: its prompts are at most used up.
        network: float transformer.
        pipeline: around it, with its text encoders.
        work: keeps what was picked.
        left: seconds that are left of the time.
        tracing: seconds that tracing the network took.
        report: told what was picked.

    Raises:
        UsageError: not even the smallest calibration fits.
    """
    from fp4dit_onnx.calibration.pacing import Effort, Speed, walk_seconds
    from fp4dit_onnx.calibration.timing import Pace

    request, kept = planned.request, work.load(PICKED)
    if kept is None:
        with report.stage("timing this machine", 1) as advance:
            speed = _measured(planned, network, pipeline, tracing)
            advance(1)
        effort = _picked(planned, speed, left())
        kept = {"speed": asdict(speed), "effort": asdict(effort)}
        work.save(PICKED, kept)
    speed, effort = Speed(**kept["speed"]), Effort(**kept["effort"])
    usual = planned.recorded
    sampling = replace(
        usual,
        steps=effort.steps,
        height=usual.height // effort.part,
        width=usual.width // effort.part,
    )
    report.note(_said(request, effort, sampling, speed))
    data = replace(planned.method.data, prompts=effort.prompts, samples=effort.samples)
    method = replace(planned.method, data=data)
    captions = None if planned.data is None else planned.data.captions
    prompts = calibration_prompts(
        request, planned.family, planned.checkpoint, usual, method, captions
    )
    pace = Pace(
        left=left,
        after=speed.after,
        walk=walk_seconds(effort, speed, method),
        method=lambda iterations: _with_iterations(request, method, iterations),
        asked=request.iterations,
    )
    return Paced(replace(planned, method=method, prompts=prompts), sampling, pace)


def _measured(planned: Plan, network: Network, pipeline: Any, tracing: float) -> Speed:
    from fp4dit_onnx.calibration.pacing import Speed
    from fp4dit_onnx.calibration.sampling import pipeline_sampler
    from fp4dit_onnx.calibration.timing import row_seconds

    few = planned.prompts[:TIMED_PROMPTS]
    seeds = list(range(len(few)))
    sampler = pipeline_sampler(
        pipeline, planned.family, few, seeds, planned.recorded, network.execution, last=False
    )
    start = time.monotonic()
    sampler.prepare()
    prompt = (time.monotonic() - start) / (len(few) + 1)
    row = row_seconds(network, sampler)
    after = SIMULATED * MEASURED_ROWS * row + REWRITING * tracing
    if planned.request.report and planned.illustrated and not planned.undrawable:
        sampling = planned.sampling
        after += REPORTED_IMAGES * (_halves(planned) * sampling.steps * row + prompt)
        after += REPORTING * tracing
    return Speed(prompt, row, after)


def _halves(planned: Plan) -> int:
    """Samples of an image in a call of the network."""
    return 2 if planned.family.guidance.doubles(planned.sampling.guidance) else 1


def _picked(planned: Plan, speed: Speed, left: float) -> Effort:
    """The data that fit; what was asked for stays."""
    from fp4dit_onnx.calibration.pacing import affordable

    request, sampling = planned.request, planned.recorded
    found = affordable(
        left,
        speed,
        steps=sampling.steps,
        side=min(sampling.height, sampling.width),
        halves=_halves(planned),
        method=planned.method,
        resizes=planned.resizes,
    )
    asked = {
        "prompts": request.calibration_prompts,
        "samples": request.samples,
        "steps": request.steps,
    }
    return replace(found, **{name: value for name, value in asked.items() if value is not None})


def _with_iterations(request: ExportRequest, method: Method, iterations: int) -> Method:
    """The method with as many iterations, and the other settings of the preset that comes nearest."""
    if request.iterations is not None:
        return method
    of = {name: replace(request, preset=name).resolved_method() for name in method.presets}
    short = [name for name, made in of.items() if made.iterations <= iterations] or [*of][:1]
    preset = max(short, key=lambda name: of[name].iterations, default=request.preset)
    settled = replace(request, preset=preset, iterations=iterations)
    return replace(settled.resolved_method(), data=method.data).with_budget(method.budget)


def _said(request: ExportRequest, effort: Effort, sampling: Sampling, speed: Speed) -> str:
    """A line for the user."""
    return (
        f"time {request.time}: picked {effort.prompts} images of {sampling.width} x "
        f"{sampling.height} in {effort.steps} denoising steps, {effort.samples} samples; here a "
        f"prompt takes {duration(speed.prompt)}, a sample {speed.row:.2g} s, what follows about "
        f"{duration(speed.after)}"
    )
