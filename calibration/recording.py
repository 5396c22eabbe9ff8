"""One run of the float sampler, and all that calibration looks at afterwards.

Batches of images are apart, so that other machines may generate them. What is recorded is kept in the
work folder batch by batch: a killed run goes on with those that it lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fp4dit_onnx.calibration.applying import quantize_layer
from fp4dit_onnx.calibration.batches import Here, Source, Watch, record_batch
from fp4dit_onnx.calibration.importance import step_importance
from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.moments import Moments, MomentSettings, add_sums
from fp4dit_onnx.calibration.moments import joined as joined_moments
from fp4dit_onnx.calibration.overflow import overflow_refused
from fp4dit_onnx.calibration.record import Sampler, choose
from fp4dit_onnx.calibration.samples import Call, Samples
from fp4dit_onnx.calibration.samples import joined as joined_samples
from fp4dit_onnx.calibration.stages import MAXIMA, MOMENTS
from fp4dit_onnx.calibration.stages.nearest import Nearest
from fp4dit_onnx.calibration.work import RECORDED, Work
from fp4dit_onnx.network.execution import Execution
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedState
from fp4dit_onnx.system.executors import LOCAL, Executor, Task
from fp4dit_onnx.system.progress import Advance, Reporter
from fp4dit_onnx.system.resources import return_memory

__all__ = ["MEASURED_CALLS", "Recorded", "begun", "record"]

MEASURED_CALLS = 4
"""Calls of the network, spread over the trajectory, on which the whole simulation is measured."""
SUMMED = "moments"
"""Folder of the moments of all batches."""
NEAREST = "nearest"
"""Layers rounded to nearest, in the work folder: all of them may take more memory than there is."""
COPIED = 16
"""Samples that are copied at a time."""


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


def begun(work: Work) -> bool:
    """Whether a batch is kept, or all of them."""
    return work.keeps(RECORDED) or any(work.folder.glob("batch.*.pt"))


def record(
    network: Network,
    specs: Mapping[str, LayerSpec],
    method: Method,
    sampler: Sampler,
    seed: int,
    reporter: Reporter,
    work: Work | None,
    executor: Executor = LOCAL,
    source: Source | None = None,
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
        executor: where batches of images are generated, if `source` is given.
        source: gives the network and the sampler there; None to generate with these, here.

    Raises:
        UsageError: a layer was never run, or what is recorded is not finite.
    """
    if work is not None and (kept := work.load(RECORDED)) is not None:
        return _read(kept, work, network.execution)
    calls = [sampler.calls * i // MEASURED_CALLS for i in range(MEASURED_CALLS)]
    watch = Watch(tuple(specs), calls, seed)
    if work is not None:
        importance = _importance(network, specs, method, sampler, reporter, work)
        moments = None
        if method.needs(MOMENTS):
            moments = MomentSettings(importance, method.data.guided, method.needs(MAXIMA))
        choice = choose(sampler, method.data.samples, importance, method.data.even, seed)
        watch = replace(watch, choice=choice, moments=moments, folder=work.folder)
    if source is None:
        source, executor = Here(network, sampler), LOCAL
    batches = _sampled(watch, sampler, source, executor, reporter, work)
    rows = {name: torch.cat([each["rows"][name] for each in batches]) for name in specs}
    whole = [call for each in batches for call in each["calls"]]
    if work is None or watch.choice is None:
        return Recorded(rows, whole, None)
    work.save("samples", _samples(watch, sampler, batches, work))
    sums = _moments(watch, batches, work)
    work.save(RECORDED, {"rows": rows, "calls": whole, "moments": sums and sums.to_json()})
    for path in work.folder.glob("batch.*"):
        work.clear(path.name)
    return _read(work.load(RECORDED), work, network.execution)


@dataclass
class _Steps:
    """Advances a stage by the calls of a batch, which may be told one by one or not at all."""

    left: int
    advance: Advance

    def __call__(self) -> None:
        self.left -= 1
        self.advance(1)

    def end(self) -> None:
        """All are done."""
        if self.left:
            self.advance(self.left)


def _sampled(
    watch: Watch,
    sampler: Sampler,
    source: Source,
    executor: Executor,
    reporter: Reporter,
    work: Work | None,
) -> list[dict[str, Any]]:
    """What `record_batch` gives for each batch; those that an earlier run kept are read."""
    what = "sampling with the float model"
    if work is None:
        what = f"{what} to measure errors (--no-measure skips that)"
    found: dict[int, dict[str, Any]] = {}
    with reporter.stage(what, sampler.calls, "denoising steps") as advance:

        def tasks() -> Iterator[Task[dict[str, Any]]]:
            for batch in range(sampler.batches):
                if work is not None and work.keeps(f"batch.{batch}"):
                    advance(sampler.calls_each, timed=False)
                    continue
                steps = _Steps(sampler.calls_each, advance)
                yield Task(f"batch {batch}", record_batch, (source, watch, batch), steps)

        for task, result in executor.results(tasks()):
            batch = task.arguments[-1]
            if work is None:
                found[batch] = result
            else:
                work.save(f"batch.{batch}", result)
                _add_sums(watch, sampler, work)
            task.on_step.end()  # type: ignore[attr-defined]
            return_memory()
    if work is None:
        return [found[batch] for batch in range(sampler.batches)]
    _add_sums(watch, sampler, work)  # of batches that a killed run kept
    return [work.load(f"batch.{batch}") for batch in range(sampler.batches)]


def _add_sums(watch: Watch, sampler: Sampler, work: Work) -> None:
    """Add the moments of all batches up to the first that is not there yet, in their order."""
    if watch.moments is None:
        return
    for batch in range(sampler.batches):
        if not work.keeps(f"batch.{batch}"):
            return
        add_sums(watch.sums(batch), work.folder / SUMMED, batch)


def _samples(
    watch: Watch, sampler: Sampler, batches: Sequence[Mapping[str, Any]], work: Work
) -> Samples:
    """Those of all batches in one folder."""
    assert watch.choice is not None
    parts = []
    for batch, each in enumerate(batches):
        first = batch * sampler.calls_each
        weight = watch.choice.part(range(first, first + sampler.calls_each)).weight
        if len(weight):
            count = len(weight) * (2 if sampler.paired else 1)
            place = watch.samples(batch)
            parts.append(Samples(place, each["samples"], count, weight, sampler.paired))
    return joined_samples(parts, work.clear("inputs"), watch.choice.weight, COPIED)


def _moments(watch: Watch, batches: Sequence[Mapping[str, Any]], work: Work) -> Moments | None:
    """Those of all batches in one folder."""
    if watch.moments is None:
        return None
    parts = [Moments.from_json(b["moments"], watch.place(i)) for i, b in enumerate(batches)]
    return joined_moments(parts, work.folder / SUMMED)


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
    what = "measuring the importance of denoising steps"
    with overflow_refused(network), reporter.stage(what, 1) as advance:
        found = [1.0] * sampler.steps
        if sampler.probe is not None:
            stages, layers = (method.range, Nearest()), {}
            for name, spec in specs.items():
                weight, alone = network.tensor(f"{name}.weight"), replace(spec, input=None)
                made = quantize_layer(name, weight, alone, stages)
                layers[name] = work.stored(f"{NEAREST}.{name}", made)
            state = QuantizedState(layers)
            found = step_importance(
                network.module, state, sampler.probe, sampler.steps, sampler.guidance, advance
            ).tolist()
            for name in specs:
                work.clear(f"{NEAREST}.{name}")
        work.save("importance", found)
    return found
