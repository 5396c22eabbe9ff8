"""Writing an ONNX model with its tensors in one aligned data file beside it, one at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fp4dit_onnx.bundle.skeleton import is_placeholder
from fp4dit_onnx.errors import Fp4DitError, UsageError
from fp4dit_onnx.files import (
    GIVEN,
    Count,
    WrongType,
    append_text,
    decoded,
    parse_object,
    write_text,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DATA_SUFFIX", "ModelFile", "save_model"]

Array = npt.NDArray[Any]
Values = Callable[[str], Array | Iterator[Array]]
"""From a tensor's name to its values: whole, or flat pieces in order."""
DATA_SUFFIX = ".data"
INLINE_BELOW = 1024
"""Bytes; smaller tensors stay in the model file, where shape inference can read them."""
FLOAT16_MAX = 65504.0
ALIGNMENT = 64
PAGE_ALIGNMENT = 1 << 16
PAGE_ALIGN_FROM = 1 << 20
"""Bytes; from here on a tensor starts at a multiple of every page size, so that it can be mapped."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the data file, as the journal notes it."""

    name: str
    offset: Count
    length: Count
    type: int
    note: Any = None

    @property
    def end(self) -> int:
        """The byte after it."""
        return self.offset + self.length


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path` and its tensors to ``path + '.data'``; `model` is emptied of them.

    Offsets are multiples of 64 bytes, of 64 KiB for tensors of at least 1 MiB.
    """
    with ModelFile(path) as file:
        file.write(model, _no_values)


def _no_values(name: str) -> Array:
    raise AssertionError(f"tensor {name} has no values")


class ModelFile:
    """An ONNX file whose tensors are written to the data file beside it one at a time.

    Args:
        path: of the model.
        journal: file that notes each tensor written, so that a later run resumes after the last
            one; None for a run that starts again.
    """

    def __init__(self, path: Path, journal: Path | None = None) -> None:
        self.path = path
        self._journal = journal
        self._places: dict[str, _Place] = {}
        data = path.with_name(path.name + DATA_SUFFIX)
        self._file = self._reopened(data) if journal and journal.exists() else data.open("wb")
        self._name = data.name

    def __enter__(self) -> Self:
        """The file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the data file; what was added is in it."""
        self._file.close()

    @property
    def notes(self) -> Mapping[str, Any]:
        """What was noted of each tensor, those of an earlier run included."""
        return {name: place.note for name, place in self._places.items()}

    def _reopened(self, data: Path) -> IO[bytes]:
        """The data file of an earlier run, cut after the last tensor that its journal has."""
        assert self._journal is not None
        size = data.stat().st_size if data.exists() else 0
        for line in self._journal.read_bytes().splitlines():
            try:
                found = parse_object(line, "a line", "a tensor's place", GIVEN, infinite=True)
                place = decoded(_Place, found)
            except (UsageError, WrongType):
                break  # the line at which the run was killed
            if place.end > size:
                break
            self._places[place.name] = place
        end = max((place.end for place in self._places.values()), default=0)
        lines = [json.dumps(asdict(place)) + "\n" for place in self._places.values()]
        write_text(self._journal, "".join(lines))
        file = data.open("r+b" if data.exists() else "wb")
        file.truncate(end)
        file.seek(end)
        return file

    def write(
        self,
        model: onnx.ModelProto,
        values: Values,
        note: Callable[[str], Any] = lambda name: None,
        done: Callable[[int], None] = lambda count: None,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """Write `model`, whose placeholders get what `values` gives for their names.

        Args:
            model: changed: its larger tensors refer to the data file afterwards.
            values: by tensor name; called once for each placeholder that is not in the file yet.
            note: what is to be noted of a tensor just written, JSON values.
            done: called after each tensor with its number of elements.
            finish: called when all tensors are there, and the model is not written yet.
        """
        for tensor in model.graph.initializer:
            place = self._places.get(tensor.name)
            if place is not None:
                _refer(tensor, place, self._name)
            elif is_placeholder(tensor):
                self._fill(tensor, values(tensor.name), note)
            elif len(tensor.raw_data) >= INLINE_BELOW:
                self._fill(tensor, numpy_helper.to_array(tensor), note)
            done(int(np.prod(tensor.dims)))
        self._file.flush()
        finish()
        self.path.write_bytes(model.SerializeToString())

    def _fill(
        self,
        tensor: onnx.TensorProto,
        values: Array | Iterator[Array],
        note: Callable[[str], Any],
    ) -> None:
        """Put `values` where they belong: into the model if they are few, else into the data file."""
        if isinstance(values, np.ndarray):
            kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            half = tensor.data_type == onnx.TensorProto.FLOAT16 and values.dtype == np.float32
            tensor.data_type = tensor.data_type if half else kind
            values = iter([values])
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        length = math.prod(tensor.dims) * dtype.itemsize
        if length < INLINE_BELOW:
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = b"".join(_stored(tensor, v, dtype).tobytes() for v in values)
            return
        alignment = PAGE_ALIGNMENT if length >= PAGE_ALIGN_FROM else ALIGNMENT
        self._file.write(bytes(-self._file.tell() % alignment))
        offset = self._file.tell()
        for part in values:
            self._file.write(_stored(tensor, part, dtype).data)
        place = _Place(tensor.name, offset, length, tensor.data_type, note(tensor.name))
        assert self._file.tell() == place.end, tensor.name
        self._places[tensor.name] = place
        if self._journal is not None:
            self._file.flush()
            append_text(self._journal, json.dumps(asdict(place)) + "\n")
        _refer(tensor, place, self._name)


def _stored(tensor: onnx.TensorProto, values: Array, dtype: np.dtype[Any]) -> Array:
    """`values` as they are stored: contiguous, float32 values in float16 where the tensor is.

    Raises:
        Fp4DitError: they are too large for it.
    """
    if dtype == np.float16 and values.dtype == np.float32 and values.size:
        largest = float(np.abs(values).max())
        if largest > FLOAT16_MAX:
            raise Fp4DitError(
                f"tensor {tensor.name} holds {largest:g}, more than float16 can store: keep the "
                "text encoder in float with --text-encoder-bits none"
            )
    return np.ascontiguousarray(values, dtype)


def _refer(tensor: onnx.TensorProto, place: _Place, location: str) -> None:
    """Let `tensor` refer to its place in the data file."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_type, tensor.data_location = place.type, onnx.TensorProto.EXTERNAL
    found = {"location": location, "offset": place.offset, "length": place.length}
    for key, value in found.items():
        tensor.external_data.add(key=key, value=str(value))
