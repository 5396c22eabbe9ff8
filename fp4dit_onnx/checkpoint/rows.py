"""Stored tensors that are cut and joined without being read.

diffusers' conversion functions cut tensors along their first axis and join the parts; run on `Rows`,
they tell which bytes of which tensors make each tensor of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any, SupportsIndex

from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.errors import CheckpointError

__all__ = ["Rows"]


@dataclass(frozen=True)
class Rows:
    """A tensor as functions of torch see it that cut, join and rename.

    Attributes:
        info: where its values lie.
    """

    info: TensorInfo

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, outermost first."""
        return self.info.shape

    @classmethod
    def joined(cls, parts: Sequence[Rows], dim: int = 0) -> Rows:
        """Parts one after another along the first axis."""
        _check_axis("cat", dim)
        infos = tuple(leaf for part in parts for leaf in (part.info.parts or (part.info,)))
        if len(infos) == 1:
            return cls(infos[0])
        shape = (sum(info.shape[0] for info in infos), *infos[0].shape[1:])
        nbytes = sum(info.nbytes for info in infos)
        return cls(replace(infos[0], shape=shape, nbytes=nbytes, parts=infos))

    def chunk(self, chunks: int, dim: int = 0) -> list[Rows]:
        """As many equal parts, the last one shorter where they do not fit."""
        return self.split(-(-self.shape[0] // chunks), dim)

    def split(self, sizes: int | Sequence[int], dim: int = 0) -> list[Rows]:
        """Parts of the sizes given."""
        _check_axis("split", dim)
        total = self.shape[0]
        if isinstance(sizes, int):
            sizes = [min(sizes, total - at) for at in range(0, total, sizes)]
        ends = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
        if ends[-1] != total:
            raise ValueError(f"parts of {list(sizes)} rows in a tensor of {total}")
        return [self[start:stop] for start, stop in pairwise(ends)]

    def __getitem__(self, rows: slice[SupportsIndex | None]) -> Rows:
        """Some consecutive rows."""
        start, stop, _ = rows.indices(self.shape[0])
        found, first = [], 0
        for info in self.info.parts or (self.info,):
            here = range(max(start, first), min(stop, first + info.shape[0]))
            if here:
                found.append(Rows(_some(info, here.start - first, len(here))))
            first += info.shape[0]
        return Rows.joined(found)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch does with `Rows` among a function's arguments."""
        known: Mapping[str, Callable[..., Any]] = {
            "cat": cls.joined,
            "chunk": cls.chunk,
            "split": cls.split,
        }
        if function.__name__ not in known:
            raise _unknown(function.__name__)
        return known[function.__name__](*args, **(kwargs or {}))


def _some(info: TensorInfo, start: int, count: int) -> TensorInfo:
    """`count` rows from `start` on of what lies in one place."""
    row, rest = divmod(info.nbytes, info.shape[0])
    if rest or (info.block > 1 and prod(info.shape[1:]) % info.block):
        raise CheckpointError(
            f"{info.file}: rows of {prod(info.shape[1:])} values in {info.dtype} end inside of blocks, "
            "and the network cuts this tensor between rows: expected whole blocks in a row; take a "
            "file in F16 or BF16"
        )
    shape = (count, *info.shape[1:])
    return replace(info, shape=shape, nbytes=count * row, offset=info.offset + start * row)


def _check_axis(function: str, dim: int) -> None:
    if dim != 0:
        raise _unknown(f"{function} along axis {dim}")


def _unknown(function: str) -> CheckpointError:
    return CheckpointError(
        f"this version of diffusers converts the layout by {function}, which is not known here: "
        "expected cuts and joins of rows alone; convert the file with diffusers (from_single_file, then "
        "save_pretrained) and give the folder"
    )
