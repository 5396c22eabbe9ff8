"""Recorded arguments of a module, on disk: N samples that are read back by index, onto a device.

The first axis of a tensor is the sample; whatever does not vary with it (flags, tables of positions)
is kept once. Only what is asked for is ever in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fp4dit_onnx.network.execution import HOST, Execution, host

__all__ = [
    "Array",
    "Call",
    "Samples",
    "Stored",
    "Tape",
    "batch_of",
    "by_sample",
    "joined",
    "map_leaves",
    "map_rows",
    "nbytes",
]

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call."""


def batch_of(call: Call) -> int:
    """Samples of a call of a network: rows of its first argument, ``hidden_states``."""
    args, kwargs = call
    first: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return int(first.shape[0])


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with every leaf changed; tuples, lists and dictionaries are walked."""
    if isinstance(value, dict):
        return {k: map_leaves(v, change) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map_leaves(v, change) for v in value)
    return change(value)


def map_rows(
    call: Call,
    batch: int,
    rows: Mapping[str | int, int],
    change: Callable[[torch.Tensor, int], Any],
    rest: Callable[[Any], Any] = lambda leaf: leaf,
) -> Call:
    """A call with every tensor changed that has a row for each sample.

    Args:
        call: of `batch` samples.
        batch: samples.
        rows: for each sample, of arguments by keyword or place, 1 where there is no entry; 0 for those
            that are the same for all samples although their first axis may be as long: a grid of 64
            positions meets a batch of 64.
        change: of those tensors, and how many rows they have for each sample.
        rest: of all other leaves.
    """

    def of(key: str | int, value: Any) -> Any:
        each = rows.get(key, 1)

        def of_rows(leaf: Any) -> Any:
            varies = each and isinstance(leaf, torch.Tensor) and leaf.ndim
            own = varies and leaf.shape[0] == batch * each
            return change(leaf, each) if own else rest(leaf)

        return map_leaves(value, of_rows)

    args, kwargs = call
    return tuple(map(of, range(len(args)), args)), {k: of(k, v) for k, v in kwargs.items()}


def by_sample(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """[B rows, ...] -> [B, rows, ...]; the same where there is one row for each sample."""
    return tensor if rows <= 1 else tensor.unflatten(0, (-1, rows))  # type: ignore[no-untyped-call]


class Array:
    """A tensor [N, ...] in a ``.npy`` file, written front to back and read by index.

    Args:
        path: of the file; uint16 in it are the bits of bfloat16, which numpy has not.
        execution: where rows are read to.
    """

    def __init__(self, path: Path, execution: Execution = HOST) -> None:
        self.path, self._execution = path, execution

    def create(self, count: int, like: torch.Tensor) -> None:
        """Make room for `count` rows of the type and row shape of `like` [B, ...]."""
        row = _stored(like[:0])
        shape = (count, *row.shape[1:])
        np.lib.format.open_memmap(self.path, "w+", row.dtype, shape)

    def write(self, start: int, rows: torch.Tensor) -> None:
        """Write `rows` [B, ...] at index `start`."""
        file = np.load(self.path, mmap_mode="r+")
        file[start : start + rows.shape[0]] = _stored(rows)  # the system writes it to disk in time

    def read(self, index: torch.Tensor | slice) -> torch.Tensor:
        """Rows at `index` (int64 [B], or a slice), copied; the file is mapped for that long only."""
        file = np.load(self.path, mmap_mode="r")
        at = index.numpy() if isinstance(index, torch.Tensor) else index
        rows = np.array(file[at])
        if rows.dtype == np.uint16:
            found = torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
        else:
            found = torch.from_numpy(rows)
        return found.to(self._execution.device)


def _stored(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """As files hold a tensor of any device."""
    here = host(tensor)
    if here.dtype == torch.bfloat16:
        return here.contiguous().view(torch.int16).numpy().view(np.uint16)
    return here.numpy()


@dataclass(frozen=True)
class Stored:
    """Stands for a tensor on disk in the structure of a call.

    Attributes:
        name: of the file.
        rows: of the tensor for each sample; in the file they are an axis after the samples' if there
            are several.
    """

    name: str
    rows: int = 1


@dataclass(frozen=True)
class Samples:
    """N recorded samples of a module's arguments.

    Attributes:
        folder: of the tensors.
        call: the arguments, `Stored` in place of each tensor that varies.
        count: N.
        weight: float32 [P], of each pair of twins in the loss, its mean about 1; P = N / 2 if
            paired, else N.
        paired: whether sample i + N/2 is sample i with the other half of guidance.
        execution: where samples are taken to.
    """

    folder: Path
    call: Call
    count: int
    weight: torch.Tensor
    paired: bool
    execution: Execution = HOST

    def take(self, index: torch.Tensor | slice) -> Call:
        """Arguments of the samples at `index`."""

        def read(leaf: Any) -> Any:
            if isinstance(leaf, Stored):
                found = Array(self.folder / f"{leaf.name}.npy", self.execution).read(index)
                return found.flatten(0, 1) if leaf.rows > 1 else found
            return self.execution.there(leaf)

        found: Call = map_leaves(self.call, read)
        return found

    def chunks(self, size: int) -> list[slice]:
        """Slices of at most `size` samples that cover all."""
        return [slice(i, min(i + size, self.count)) for i in range(0, self.count, size)]

    @property
    def pairs(self) -> int:
        """How many weights there are: pairs of twins, or samples."""
        return self.count // 2 if self.paired else self.count

    def twins(self, pairs: torch.Tensor) -> torch.Tensor:
        """Indices of the samples of `pairs` (int64 [P]): unconditional ones first, then twins."""
        return torch.cat([pairs, pairs + self.pairs]) if self.paired else pairs


@dataclass
class Tape:
    """Writes calls to a folder, batch by batch; `finish` makes them `Samples`.

    Attributes:
        folder: for the tensors; made if need be.
        count: samples to come.
        rows: see `map_rows`.
        call: the structure of all calls, `Stored` in place of what varies; None before the first.
    """

    folder: Path
    count: int
    rows: Mapping[str | int, int] = field(default_factory=dict)
    call: Call | None = field(default=None, init=False)

    def write(self, start: int, call: Call, batch: int) -> None:
        """Write the `batch` samples of one call at index `start`.

        The structure is that of the first call; tensors whose first axis is the batch vary.
        """
        if self.call is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.call = self._structure(call, batch)
        for leaf, value in _leaves(self.call, call):
            if isinstance(leaf, Stored):
                self._array(leaf).write(start, by_sample(value.detach(), leaf.rows))

    def begin(self, like: Samples) -> None:
        """Make room for samples of a structure that is known."""
        self.folder.mkdir(parents=True)
        self.call = like.call
        for leaf, value in _leaves(like.call, like.take(slice(0, 1))):
            if isinstance(leaf, Stored):
                self._array(leaf).create(self.count, by_sample(value, leaf.rows))

    def _array(self, leaf: Stored) -> Array:
        return Array(self.folder / f"{leaf.name}.npy")

    def _structure(self, call: Call, batch: int) -> Call:
        names = itertools.count()

        def place(value: torch.Tensor, rows: int) -> Stored:
            leaf = Stored(f"{next(names):03d}", rows)
            self._array(leaf).create(self.count, by_sample(value.detach(), rows))
            return leaf

        def once(value: Any) -> Any:
            return host(value) if isinstance(value, torch.Tensor) else value

        return map_rows(call, batch, self.rows, place, once)

    def finish(
        self, weight: torch.Tensor, *, paired: bool, execution: Execution = HOST
    ) -> Samples:
        """What was written, to be taken to where `execution` says."""
        assert self.call is not None, "nothing was recorded"
        return Samples(self.folder, self.call, self.count, weight, paired, execution)


def joined(parts: Sequence[Samples], folder: Path, weight: torch.Tensor, chunk: int) -> Samples:
    """All samples of `parts`, one part after the other; twins behind the firsts of all parts.

    Args:
        parts: at least one; of equal structure.
        folder: for the tensors, made new.
        weight: see `Samples`.
        chunk: samples that are copied at a time.
    """
    first, count = parts[0], sum(part.count for part in parts)
    tape = Tape(folder, count)
    tape.begin(first)
    start = 0
    for half in range(2 if first.paired else 1):
        for part in parts:
            for at in range(half * part.pairs, (half + 1) * part.pairs, chunk):
                end = min(at + chunk, (half + 1) * part.pairs)
                tape.write(start, part.take(slice(at, end)), end - at)
                start += end - at
    return tape.finish(weight, paired=first.paired)


def _leaves(structure: Any, value: Any) -> Sequence[tuple[Any, Any]]:
    """(leaf of `structure`, the same place in `value`)."""
    if isinstance(structure, dict):
        return [pair for k in structure for pair in _leaves(structure[k], value[k])]
    if isinstance(structure, (tuple, list)):
        both = zip(structure, value, strict=True)
        return [pair for s, v in both for pair in _leaves(s, v)]
    return [(structure, value)]


def nbytes(value: Any) -> int:
    """Bytes of all tensors in a structure."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(nbytes, value.values()))
    return sum(map(nbytes, value)) if isinstance(value, (tuple, list)) else 0
