"""One batch of the float sampler, recorded: a pure function of values, so that it may run anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fp4dit_onnx.calibration.capture import CallRecorder, InputRecorder
from fp4dit_onnx.calibration.moments import MomentRecorder, MomentSettings
from fp4dit_onnx.calibration.overflow import overflow_refused
from fp4dit_onnx.calibration.record import Choice, Sampler, SampleRecorder
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.system.resources import return_memory

__all__ = ["ROWS_PER_CALL", "Here", "Source", "Watch", "record_batch"]

ROWS_PER_CALL = 4


class Source(Protocol):
    """Gives the network, and the float sampler that runs it."""

    def opened(self) -> tuple[Network, Sampler]:
        """Both; opened once in a process."""
        ...


@dataclass(frozen=True)
class Here:
    """A network of this process."""

    network: Network
    sampler: Sampler

    def opened(self) -> tuple[Network, Sampler]:
        """See `Source`."""
        return self.network, self.sampler


@dataclass(frozen=True)
class Watch:
    """What is looked at while the sampler runs.

    Attributes:
        layers: whose input rows are kept.
        calls: numbers of the network's calls that are kept whole, over all batches.
        seed: of every random choice.
        choice: samples to keep; None for none.
        moments: how they are summed; None for no moments.
        folder: a folder for each batch, by its number, is made there; None where neither is asked for.
    """

    layers: tuple[str, ...]
    calls: Sequence[int]
    seed: int
    choice: Choice | None = None
    moments: MomentSettings | None = None
    folder: Path | None = None

    def place(self, batch: int) -> Path:
        """The folder of a batch."""
        assert self.folder is not None
        return self.folder / f"batch.{batch}"

    def samples(self, batch: int) -> Path:
        """The folder of a batch's samples."""
        return self.place(batch) / "inputs"

    def sums(self, batch: int) -> Path:
        """The folder of a batch's moments."""
        return self.place(batch) / "moments"


def record_batch(
    source: Source, watch: Watch, batch: int, on_step: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Generate one batch of images. All arguments but the last can be pickled.

    Args:
        source: of the network.
        watch: what to keep.
        batch: its number.
        on_step: called after each denoising step.

    Returns:
        ``rows``: float32 [R, K] by layer; ``calls``; ``samples``: the structure of what was written
        to the batch's folder, None for nothing; ``moments``: `Moments` as plain data, None for none.

    Raises:
        UsageError: a layer was never run, or what is recorded is not finite.
    """
    network, sampler = source.opened()
    module, first = network.module, batch * sampler.calls_each
    own = range(first, first + sampler.calls_each)
    rows = InputRecorder(module, watch.layers, ROWS_PER_CALL, (watch.seed, batch))
    calls = CallRecorder(module, [call - first for call in watch.calls])
    samples: SampleRecorder | None = None
    moments: MomentRecorder | None = None
    if watch.choice is not None:
        shutil.rmtree(watch.place(batch), ignore_errors=True)  # of a run that was killed
        samples = SampleRecorder(
            module,
            watch.choice.part(own),
            watch.samples(batch),
            paired=sampler.paired,
            tables=sampler.tables,
        )
        if watch.moments is not None:
            where, seed = watch.sums(batch), (watch.seed, batch)
            moments = MomentRecorder(module, watch.layers, sampler, watch.moments, where, seed)

    def on_call() -> None:
        return_memory()
        on_step()

    recorders = [one for one in (rows, calls, samples, moments) if one is not None]
    try:
        with overflow_refused(network), torch.no_grad():
            sampler.sample(on_call, batch)
    finally:
        for recorder in recorders:
            recorder.close()
    return {
        "rows": {name: rows.rows(name) for name in watch.layers},
        "calls": calls.calls,
        "samples": samples and samples.structure,
        "moments": moments and moments.moments().to_json(),
    }
