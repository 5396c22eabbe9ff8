"""One run of the float sampler, and all that calibration looks at afterwards.

What is recorded is kept in the work folder batch by batch: a killed run goes on after its last batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from fp4dit_onnx.calibration.applying import quantize_layers
from fp4dit_onnx.calibration.capture import CallRecorder, InputRecorder
from fp4dit_onnx.calibration.importance import step_importance
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.moments import MomentRecorder, Moments
from fp4dit_onnx.calibration.overflow import overflow_refused
from fp4dit_onnx.calibration.record import Sampler, SampleRecorder, choose
from fp4dit_onnx.calibration.samples import Call, Samples
from fp4dit_onnx.calibration.stages import MAXIMA, MOMENTS
from fp4dit_onnx.calibration.stages.nearest import Nearest
from fp4dit_onnx.calibration.work import RECORDED, Work
from fp4dit_onnx.network.execution import Execution
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedState
from fp4dit_onnx.system.progress import Reporter, SilentReporter
from fp4dit_onnx.system.resources import return_memory

__all__ = ["BEGUN", "MEASURED_CALLS", "ROWS_PER_CALL", "Recorded", "Recorder", "record"]

ROWS_PER_CALL = 4
MEASURED_CALLS = 4
"""Calls of the network, spread over the trajectory, on which the whole simulation is measured."""
BEGUN = "begun"
"""What a run of the sampler kept that is not at its end."""


class Recorder(Protocol):
    """Hooks of a network that record while the sampler runs."""

    def state(self, place: Path) -> dict[str, Any]:
        """What `resume` goes on from; large tensors move to the folder `place`.

        Between the two nothing may be recorded.
        """
        ...

    def resume(self, state: Mapping[str, Any], place: Path) -> None:
        """Go on from a state, this recorder's or that of a killed run; `place` stays as it is."""
        ...

    def close(self) -> None:
        """Remove the hooks."""
        ...


@dataclass(frozen=True)
class Recorded:
    """The results of one run of the float sampler.

    Attributes:
        rows: input rows of each layer, float32 [R, K], on the host.
        calls: some calls of the network, on the host.
        samples: arguments of the network to train and compare on, None where no stage needs data.
        moments: second moments of layers' inputs, None where no stage needs them.
    """

    rows: Mapping[str, torch.Tensor]
    calls: Sequence[Call]
    samples: Samples | None
    moments: Moments | None = None


def record(
    network: Network,
    specs: Mapping[str, LayerSpec],
    method: Method,
    sampler: Sampler,
    seed: int,
    reporter: Reporter,
    work: Work | None,
) -> Recorded:
    """Run the float sampler once and keep what calibration looks at; a kept run is read again.

    Args:
        network: transformer.
        specs: name -> specification of each linear to quantize.
        method: says what is looked at.
        sampler: to run.
        seed: of the choice of rows and samples.
        reporter: progress.
        work: where everything goes; None where no stage needs data.

    Raises:
        UsageError: a layer was never run, or what is recorded is not finite.
    """
    if work is not None and (kept := work.load(RECORDED)) is not None:
        return _read(kept, work, network.execution)
    module, layers = network.module, tuple(specs)
    chosen = moments = begun = None
    importance: Sequence[float] = ()
    if work is not None:  # before any hook is there
        with overflow_refused(network):
            importance = _importance(network, specs, method, sampler, reporter, work)
        begun = work.load(BEGUN)
    which = [sampler.calls * i // MEASURED_CALLS for i in range(MEASURED_CALLS)]
    rows, calls = InputRecorder(module, layers, ROWS_PER_CALL, seed), CallRecorder(module, which)
    if work is not None:
        place = work.folder.joinpath if begun else work.clear
        choice = choose(sampler, method.data.samples, importance, method.data.even, seed)
        chosen = SampleRecorder(
            module, choice, place("inputs"), paired=sampler.paired, tables=sampler.tables
        )
        if method.needs(MOMENTS):
            guided, folder = method.data.guided, place("moments")
            moments = MomentRecorder(
                module,
                layers,
                sampler,
                importance,
                guided,
                folder,
                seed,
                maxima=method.needs(MAXIMA),
            )
    every: dict[str, Recorder | None] = {"rows": rows, "calls": calls}
    every |= {"samples": chosen, "moments": moments}
    recorders = {name: one for name, one in every.items() if one is not None}
    try:
        with overflow_refused(network):
            _run(recorders, sampler, reporter, work, begun)
    finally:
        for recorder in recorders.values():
            recorder.close()
    received = {name: rows.rows(name) for name in layers}
    if work is None or chosen is None:
        return Recorded(received, calls.calls, None)
    work.save("samples", chosen.samples())
    found = moments and moments.moments().to_json()
    work.save(RECORDED, {"rows": received, "calls": calls.calls, "moments": found})
    for path in work.folder.glob(f"{BEGUN}.*"):
        work.clear(path.name)
    return _read(work.load(RECORDED), work, network.execution)


def _run(
    recorders: Mapping[str, Recorder],
    sampler: Sampler,
    reporter: Reporter,
    work: Work | None,
    begun: Mapping[str, Any] | None,
) -> None:
    """Run the sampler, or what a killed run left of it, and keep its state after each batch."""
    what = "sampling with the float model"
    if work is None:
        what = f"{what} to measure errors (--no-measure skips that)"
    done = 0
    with reporter.stage(what, sampler.calls, "denoising steps") as advance:
        if work is not None and begun is not None:
            done = begun["done"]
            advance(done, timed=False)
            _resume(recorders, begun, work)

        def on_call() -> None:
            nonlocal done
            done += 1
            advance(1)
            return_memory()
            if work is not None and done % sampler.steps == 0 and done < sampler.calls:
                _keep(recorders, done, work)

        sampler.sample(on_call, done // sampler.steps)


def _keep(recorders: Mapping[str, Recorder], done: int, work: Work) -> None:
    """Keep the state after `done` calls in place of an earlier one, and go on from it."""
    earlier = list(work.folder.glob(f"{BEGUN}.*[0-9]"))
    place = work.clear(f"{BEGUN}.{done}")
    place.mkdir()
    state = {"done": done, **{name: one.state(place) for name, one in recorders.items()}}
    work.save(BEGUN, state)
    for path in earlier:
        if path != place:
            work.clear(path.name)
    _resume(recorders, state, work)


def _resume(recorders: Mapping[str, Recorder], state: Mapping[str, Any], work: Work) -> None:
    place = work.folder / f"{BEGUN}.{state['done']}"
    for name, recorder in recorders.items():
        recorder.resume(state[name], place)


def _read(kept: Mapping[str, Any], work: Work, execution: Execution) -> Recorded:
    """The results of a run of the float sampler in the work folder."""
    moments = kept["moments"] and Moments.from_json(kept["moments"], work.folder)
    samples = work.load_samples("samples", execution)
    return Recorded(kept["rows"], kept["calls"], samples, moments)


def _importance(
    network: Network,
    specs: Mapping[str, LayerSpec],
    method: Method,
    sampler: Sampler,
    reporter: Reporter,
    work: Work,
) -> Sequence[float]:
    """Of each denoising step; measured once."""
    known: list[float] | None = work.load("importance")
    if known is not None:
        return known
    with reporter.stage("measuring the importance of denoising steps", 1) as advance:
        found = [1.0] * sampler.steps
        if sampler.probe is not None:
            weights_only = {name: replace(spec, input=None) for name, spec in specs.items()}
            stages = (method.range, Nearest())
            state = QuantizedState(
                quantize_layers(network, weights_only, stages, SilentReporter())
            )
            found = step_importance(
                network.module, state, sampler.probe, sampler.steps, sampler.guidance, advance
            ).tolist()
        work.save("importance", found)
    return found
