"""Second moments of linears' inputs, some rows, and maxima if need be, while the float model samples.

One pass of the sampler serves every layer. Sums are files in the work folder, mapped and not loaded:
memory is bounded by the page cache, whatever the model. Linears that read one tensor share them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fp4dit_onnx.calibration.record import Sampler
from fp4dit_onnx.calibration.samples import Array, batch_of
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families.guidance import led
from fp4dit_onnx.network.execution import host

__all__ = [
    "HalfWeights",
    "MomentRecorder",
    "MomentSettings",
    "Moments",
    "Rows",
    "add_sums",
    "joined",
]

ROWS = 512
"""Pairs of rows, about, that are kept of each input."""
SUMS, ROWS_FILE, PEAKS = ".sums.npy", ".rows.npy", ".peaks.npy"
"""What follows a layer's name in its files."""


@dataclass(frozen=True)
class HalfWeights:
    """How errors in both halves of guidance count.

    Attributes:
        scale: of the sampler; at most 1 for none.
        weight: of the guided combination ``u + scale (c - u)`` beside the two halves.
    """

    scale: float
    weight: float

    @property
    def paired(self) -> bool:
        """Whether calls hold both halves."""
        return self.scale > 1

    def combined(self, unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
        """What the sampler makes of both halves."""
        made: torch.Tensor = led(unconditional, conditional, self.scale)
        return made


@dataclass(frozen=True)
class Rows:
    """Some rows that a layer received.

    Attributes:
        halves: float32 [R, 2, K] with guidance, the unconditional one first; [R, 1, K] without; on
            any device.
        weight: float32 [R], importance of the step that each is from.
        guidance: how errors count.
    """

    halves: torch.Tensor
    weight: torch.Tensor
    guidance: HalfWeights

    def error(self, difference: torch.Tensor) -> float:
        """Weighted mean square of outputs' differences [R, halves, N], as `HalfWeights` counts them."""
        weight = (self.weight / self.weight.sum()).double()
        halves = host(difference.square().mean(dim=(1, 2))).double()
        if not self.guidance.paired:
            return float(weight @ halves)
        guided = self.guidance.combined(difference[:, 0], difference[:, 1])
        both = halves + self.guidance.weight * host(guided.square().mean(dim=1)).double()
        return float(weight @ both) / (1 + self.guidance.weight)


@dataclass(frozen=True)
class Moments:
    """The results of a pass of the float sampler.

    Attributes:
        folder: of the sums and rows.
        readers: layer -> the first layer that reads the same tensor.
        total: that layer -> what its sums are to be divided by.
        weights: that layer -> importance of each of its rows.
        samples: that layer -> how many samples' maxima there are.
        guidance: how errors count.
    """

    folder: Path
    readers: Mapping[str, str]
    total: Mapping[str, float]
    weights: Mapping[str, Sequence[float]]
    samples: Mapping[str, int]
    guidance: HalfWeights

    def matrix(self, layer: str) -> torch.Tensor:
        """``E[x x^T]`` of what `layer` receives, float64 [K, K]."""
        first = self.readers[layer]
        sums = Array(self.folder / f"{first}{SUMS}").read(slice(None))
        return sums.double() / self.total[first]

    def rows(self, layer: str) -> Rows:
        """Some of what `layer` receives."""
        first = self.readers[layer]
        weight = torch.tensor(self.weights[first])
        kept = Array(self.folder / f"{first}{ROWS_FILE}").read(slice(len(weight)))
        return Rows(kept, weight, self.guidance)

    def peaks(self, layer: str) -> torch.Tensor:
        """Largest magnitudes over the tokens of each sample and call, float32 [S, K].

        In order of time; of a table that is the same for all samples there is one in each call.
        """
        first = self.readers[layer]
        kept = Array(self.folder / f"{first}{PEAKS}")
        return kept.read(slice(self.samples[first]))

    def to_json(self) -> dict[str, Any]:
        """Plain data; the folder by its name."""
        return {**vars(self), "folder": self.folder.name, "guidance": asdict(self.guidance)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], work: Path) -> Moments:
        """What `to_json` made of one in the folder `work`."""
        guidance = HalfWeights(**fields["guidance"])
        return cls(**{**fields, "folder": work / fields["folder"], "guidance": guidance})


def add_sums(batch: Path, whole: Path, number: int) -> None:
    """Add the sums of a batch to those of all before it, file by file; killed, it may be done again.

    Args:
        batch: folder of its moments, which lose their sums.
        whole: folder of the sums; a file's name says how many batches are in it.
        number: of the batch, from 0.
    """
    whole.mkdir(exist_ok=True)
    for own in batch.glob(f"*{SUMS}"):
        before, after = (whole / f"{own.name}.{n}" for n in (number, number + 1))
        if number and not after.exists():
            partial = own.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, np.load(before) + np.load(own, mmap_mode="r"))
            partial.replace(after)
            own.unlink()
        elif not number:
            own.replace(after)
        own.unlink(missing_ok=True)
        before.unlink(missing_ok=True)


def joined(batches: Sequence[Moments], folder: Path) -> Moments:
    """The moments of all batches, in the folder of their sums, see `add_sums`."""
    total: dict[str, float] = {}
    weights: dict[str, list[float]] = {}
    samples: dict[str, int] = {}
    for first in batches[0].total:
        sums = folder / f"{first}{SUMS}"
        if not sums.exists():
            sums.with_name(f"{sums.name}.{len(batches)}").replace(sums)
        total[first] = sum(each.total[first] for each in batches)
        weights[first] = [w for each in batches for w in each.weights[first]]
        samples[first] = sum(each.samples[first] for each in batches)
        for what, counts in (
            (ROWS_FILE, [len(each.weights[first]) for each in batches]),
            (PEAKS, [each.samples[first] for each in batches]),
        ):
            parts = [Array(each.folder / f"{first}{what}") for each in batches]
            rows = [p.read(slice(n)) for p, n in zip(parts, counts, strict=True) if n]
            if rows:
                kept = Array(folder / f"{first}{what}")
                kept.create(sum(counts), rows[0])
                kept.write(0, torch.cat(rows))
    readers, guidance = batches[0].readers, batches[0].guidance
    return Moments(folder, readers, total, weights, samples, guidance)


@dataclass(frozen=True)
class MomentSettings:
    """How moments are summed.

    Attributes:
        importance: [steps].
        guided: weight of the guided combination.
        maxima: whether each sample's are recorded.
    """

    importance: Sequence[float]
    guided: float
    maxima: bool = False


@dataclass
class _Input:
    """Of one tensor that layers read; `call` of the network is the one that rows are from last."""

    sums: npt.NDArray[np.float32]
    rows: Array
    peaks: Array
    total: float = 0.0
    samples: int = 0
    weights: list[float] = field(default_factory=list)
    call: int = -1


class MomentRecorder:
    """Forward hooks that sum ``x x^T`` of what named linears receive.

    A call's samples count by the importance of its step, the two halves of guidance and their guided
    combination as `HalfWeights` says; of a sample the mean over its rows is taken.

    Args:
        network: the float transformer.
        layers: names of linears.
        sampler: one batch of it will be run.
        settings: how they are summed.
        folder: for the sums; made if need be.
        seed: of the choice of rows.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        layers: Sequence[str],
        sampler: Sampler,
        settings: MomentSettings,
        folder: Path,
        seed: int | tuple[int, ...],
    ) -> None:
        self._maxima = settings.maxima
        folder.mkdir(parents=True, exist_ok=True)
        self._layers, self._folder = tuple(layers), folder
        self._sampling = sampler.guidance
        weight = sampler.guidance.weight if sampler.paired else 1.0
        self._guidance = HalfWeights(weight, settings.guided)
        self._importance, self._random = settings.importance, np.random.default_rng(seed)
        self._calls, self._each = sampler.calls_each, -(-ROWS // sampler.calls)
        self._call, self._samples = -1, 0
        self._readers: dict[str, str] = {}
        self._inputs: dict[str, _Input] = {}
        self._seen: list[tuple[weakref.ref[torch.Tensor], str]] = []
        self._handles = [
            network.register_forward_pre_hook(self._start, with_kwargs=True),
            *(
                network.get_submodule(name).register_forward_pre_hook(self._hook(name))
                for name in self._layers
            ),
        ]

    def _start(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """A call of the network begins."""
        self._call += 1
        self._samples = batch_of((args, kwargs))
        self._seen.clear()

    def _hook(self, name: str) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            if self._first(name, args[0]) == name:
                self._add(name, args[0].detach())

        return hook

    def _first(self, name: str, x: torch.Tensor) -> str:
        """The first layer that reads the tensor, found when `name` is called first."""
        if name not in self._readers:
            same = (first for seen, first in self._seen if seen() is x)
            self._readers[name] = next(same, name)
        if self._readers[name] == name:
            self._seen.append((weakref.ref(x), name))
        return self._readers[name]

    def _add(self, name: str, x: torch.Tensor) -> None:
        """What a layer receives, [B, ..., K]; or [..., K], a table that is the same for all samples."""
        halves = 2 if self._guidance.paired else 1
        own = x.shape[0] == self._samples
        parts = self._sampling.halves(x) if own and halves == 2 else [x] * halves
        rows = torch.stack([p.reshape(-1, p.shape[-1]) for p in parts], dim=1)  # [R, halves, K]
        importance = self._importance[self._call % len(self._importance)]
        kept = self._input(name, rows, x.shape[0] if own else 1)
        pictures = self._samples / halves
        kept.sums += host(self._gram(rows.float()) * (importance * pictures / len(rows))).numpy()
        kept.total += importance * pictures
        if kept.call == self._call:
            return  # DiT's first block embeds the time twice: there is room for one of them
        kept.call = self._call
        if self._maxima:
            peaks = x.abs().reshape(x.shape[0] if own else 1, -1, x.shape[-1]).amax(dim=1)
            kept.peaks.write(kept.samples, peaks.float())  # [S, K]
            kept.samples += len(peaks)
        count = min(self._each, len(rows))
        pick = np.sort(self._random.choice(len(rows), count, replace=False))
        kept.rows.write(len(kept.weights), rows[torch.from_numpy(pick)].float())
        kept.weights += [importance] * count

    def _gram(self, rows: torch.Tensor) -> torch.Tensor:
        """The sum over rows [R, halves, K] of x x^T, float32 [K, K]."""
        flat = rows.flatten(0, 1)
        plain = flat.T @ flat / rows.shape[1]
        if not self._guidance.paired:
            return plain
        guided = self._guidance.combined(rows[:, 0], rows[:, 1])
        both = plain + self._guidance.weight * (guided.T @ guided)
        return both / (1 + self._guidance.weight)

    def _input(self, name: str, rows: torch.Tensor, samples: int) -> _Input:
        if name not in self._inputs:
            k = rows.shape[-1]
            sums = np.lib.format.open_memmap(self._file(name, SUMS), "w+", np.float32, (k, k))
            kept, peaks = (Array(self._file(name, what)) for what in (ROWS_FILE, PEAKS))
            kept.create(self._calls * self._each, rows.float())
            if self._maxima:
                peaks.create(self._calls * samples, rows[0].float())
            self._inputs[name] = _Input(sums, kept, peaks)
        return self._inputs[name]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _file(self, name: str, what: str) -> Path:
        return self._folder / f"{name}{what}"

    def moments(self) -> Moments:
        """What was recorded.

        Raises:
            UsageError: a layer was never run, or received NaN or infinity.
        """
        for name in self._layers:
            if name not in self._readers:
                raise UsageError(
                    f"layer {name} was never run while sampling: exclude it with a rule"
                )
        for name, kept in self._inputs.items():
            if not np.isfinite(kept.sums).all():
                raise UsageError(
                    f"layer {name}: the float model's own activations hold NaN or infinity; check "
                    "the checkpoint and the sampling settings"
                )
            kept.sums.flush()  # type: ignore[attr-defined]
        return Moments(
            self._folder,
            dict(self._readers),
            {name: kept.total for name, kept in self._inputs.items()},
            {name: kept.weights for name, kept in self._inputs.items()},
            {name: kept.samples for name, kept in self._inputs.items()},
            self._guidance,
        )
