"""Recording the float sampler's calls of the network as samples to train on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fp4dit_onnx.calibration.importance import step_shares
from fp4dit_onnx.calibration.samples import Call, Tape, batch_of, map_leaves, map_rows
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families.guidance import Guided

__all__ = ["Choice", "SampleRecorder", "Sampler", "check_disk", "choose", "first_call", "part_of"]


@dataclass(frozen=True)
class Sampler:
    """The float sampler over the calibration prompts.

    Attributes:
        sample: generates the images of a batch, by its number; calls its first argument once after
            each call of the network.
        calls: how many calls that will be.
        prompts: images generated.
        batch: images in a batch.
        steps: calls of the network per batch, in order of time.
        tables: keyword arguments of the network that are the same for all samples, whatever their
            first axis.
        guidance: how it is led towards the prompts, which may double a call's samples.
        prepare: encodes the prompts, and lets go of the text encoders; before all else.
        probe: generates one small batch, always the same, and returns its final latents; in so many
            steps as its argument says, or as the sampler's.
        close: lets go of what only sampling needs.
    """

    sample: Callable[[Callable[[], None], int], object]
    calls: int
    prompts: int = 1
    batch: int = 1
    steps: int = 1
    tables: Collection[str] = ()
    guidance: Guided = field(default_factory=Guided)
    probe: Callable[..., torch.Tensor] | None = None
    prepare: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None

    @property
    def paired(self) -> bool:
        """Whether each call holds both halves of guidance."""
        return self.guidance.paired

    @property
    def batches(self) -> int:
        """How many there are."""
        return -(-self.prompts // self.batch)

    @property
    def calls_each(self) -> int:
        """Calls of the network for a batch."""
        return self.calls // self.batches


class _FirstCallError(Exception):
    """Leaves the sampler at its first call of the network."""


def first_call(network: torch.nn.Module, sampler: Sampler) -> Call:
    """Arguments of the network's first call, without running it."""
    found: list[Call] = []

    def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise _FirstCallError

    handle = network.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        sampler.sample(lambda: None, 0)
    except _FirstCallError:
        pass
    finally:
        handle.remove()
    if not found:
        raise UsageError("the sampler never called the network: expected a prompt and a step")
    return found[0]


def part_of(call: Call, rows: torch.Tensor, tables: Collection[str] = ()) -> Call:
    """The call with some of its samples; what does not vary with them stays.

    Args:
        call: of the network.
        rows: int64 [R], of the samples.
        tables: see `Sampler`.
    """
    batch = batch_of(call)

    def take(leaf: torch.Tensor, _: int) -> torch.Tensor:
        return leaf[rows]

    return map_rows(call, batch, dict.fromkeys(tables, 0), take)


@dataclass(frozen=True)
class Choice:
    """Which samples to keep.

    Attributes:
        rows: call -> images of that call's batch, int64.
        weight: float32 [P], of each in the loss, in the order of the calls.
    """

    rows: dict[int, npt.NDArray[np.int64]]
    weight: torch.Tensor

    @property
    def count(self) -> int:
        """P, images over all calls."""
        return int(self.weight.shape[0])

    def part(self, calls: range) -> Choice:
        """Of some calls, which are numbered from 0 there."""
        sizes = {call: len(rows) for call, rows in self.rows.items()}
        before = sum(n for call, n in sizes.items() if call < calls.start)
        own = {call - calls.start: rows for call, rows in self.rows.items() if call in calls}
        count = sum(map(len, own.values()))
        return Choice(own, self.weight[before : before + count])


def choose(
    sampler: Sampler, samples: int, importance: npt.ArrayLike, even: float, seed: int
) -> Choice:
    """Spread `samples` (both halves of guidance counted) over steps, then over images.

    A step gets at least one image and at most all; its samples' weight makes up for its share, so
    that the loss counts each step by its importance.

    Args:
        sampler: the run to record.
        samples: how many to keep, about.
        importance: [steps].
        even: share that is spread evenly over the steps.
        seed: of the choice of images.
    """
    importance = np.asarray(importance, np.float64)
    random = np.random.default_rng(seed)
    wanted = samples // (2 if sampler.paired else 1) * step_shares(importance, even)
    counts = np.clip(wanted.round().astype(int), 1, sampler.prompts)
    rows: dict[int, npt.NDArray[np.int64]] = {}
    for step, count in enumerate(counts.tolist()):
        pictures = np.sort(random.choice(sampler.prompts, count, replace=False))
        for batch in np.unique(pictures // sampler.batch).tolist():
            inside = pictures[pictures // sampler.batch == batch] % sampler.batch
            rows[batch * sampler.steps + step] = inside.astype(np.int64)
    ordered = dict(sorted(rows.items()))
    each = importance / counts
    weight = np.concatenate([np.full(len(r), each[c % sampler.steps]) for c, r in ordered.items()])
    return Choice(ordered, torch.from_numpy((weight / weight.mean()).astype(np.float32)))


class SampleRecorder:
    """A forward hook that writes the chosen samples of each call to disk.

    Args:
        network: the float transformer.
        choice: what to keep.
        folder: for the tensors.
        paired: whether a call's second half are the twins of its first.
        tables: see `Sampler`.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        choice: Choice,
        folder: Path,
        *,
        paired: bool,
        tables: Collection[str] = (),
    ) -> None:
        self._choice, self._paired, self._tables = choice, paired, tables
        count = choice.count * (2 if paired else 1)
        self._tape = Tape(folder, count, dict.fromkeys(tables, 0))
        self._call = self._written = 0
        self._handle = network.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        rows = self._choice.rows.get(self._call)
        self._call += 1
        if rows is None:
            return
        pictures = torch.from_numpy(rows)
        halves = 2 if self._paired else 1
        size = batch_of((args, kwargs)) // halves
        for half in range(halves):
            part = part_of((args, kwargs), pictures + half * size, self._tables)
            map_leaves(part, _check_finite)
            self._tape.write(self._written + half * self._choice.count, part, len(rows))
        self._written += len(rows)

    def close(self) -> None:
        """Remove the hook."""
        self._handle.remove()

    @property
    def structure(self) -> Call | None:
        """Of what was written, see `Tape`; None for nothing."""
        return self._tape.call


def _check_finite(leaf: Any) -> None:
    floating = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    if floating and not bool(torch.isfinite(leaf).all()):
        raise UsageError(
            "the float model's own inputs hold NaN or infinity while sampling; check the "
            "checkpoint and the sampling settings"
        )


def check_disk(folder: Path, needed: int, samples: int) -> None:
    """Raise UsageError where the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f"{folder} has {free / 2**30:.1f} GiB free: expected {needed / 2**30:.1f} GiB for the "
            f"recorded activations of {samples} samples; free some, choose another folder with "
            "--work, or record less with --samples"
        )
