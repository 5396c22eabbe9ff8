"""Sessions whose inputs and outputs stay in the memory of their device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.providers import Placement, runtime_package
from fp4dit_onnx.runtime.session import Session

__all__ = ["Bound", "Recorded", "Recorder"]

Array = npt.NDArray[Any]


class Bound:
    """A session, and its inputs on the device.

    Args:
        session: an onnxruntime.InferenceSession.
        placed: its, with a memory.

    Attributes:
        inputs: name -> onnxruntime.OrtValue, of those that were written.
    """

    def __init__(self, session: Any, placed: Placement) -> None:
        self._session, self._memory = session, placed.memory or ()
        self._outputs = [item.name for item in session.get_outputs()]
        self._value = runtime_package().OrtValue
        self.inputs: dict[str, Any] = {}

    def put(self, array: Array) -> Any:
        """A copy of an array there."""
        return self._value.ortvalue_from_numpy(np.ascontiguousarray(array), *self._memory)

    def write(self, feed: Mapping[str, Array]) -> None:
        """Copies inputs there, to where they were before if they were written before."""
        for name, array in feed.items():
            if name in self.inputs:
                self.inputs[name].update_inplace(np.ascontiguousarray(array))
            else:
                self.inputs[name] = self.put(array)

    def run(self) -> list[Any]:
        """All outputs, there, of the inputs that were written."""
        return self(self.inputs)

    def __call__(
        self, feed: Mapping[str, Any], into: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """All outputs, there, of inputs there or in numpy; those that `into` has are written to it."""
        binding = self._session.io_binding()
        for name, value in feed.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            if into and name in into:
                binding.bind_ortvalue_output(name, into[name])
            else:
                binding.bind_output(name, *self._memory)
        self._session.run_with_iobinding(binding)
        return list(binding.get_outputs())


class Recorded(Bound):
    """A session whose first run records its launches, which later runs replay.

    Inputs and outputs stay where they were then.

    Args:
        session: of a `Placement.capturing`, with fixed sizes.
        placed: its, with a memory.

    Raises:
        UsageError: an output's size is not known before the run.
    """

    def __init__(self, session: Any, placed: Placement) -> None:
        super().__init__(session, placed)
        if not all(isinstance(size, int) for item in session.get_outputs() for size in item.shape):
            raise UsageError(
                "--cuda-graph: the transformer makes outputs whose size ONNX Runtime cannot tell "
                "from that of its inputs: leave it out"
            )
        self._made = {
            item.name: self._value.ortvalue_from_shape_and_type(
                item.shape, np.float32, *self._memory
            )
            for item in session.get_outputs()
        }

    def run(self) -> list[Any]:
        """All outputs, which the next run overwrites."""
        return self(self.inputs, self._made)


class Recorder:
    """Makes the `Recorded` of a transformer, and keeps the last one.

    Args:
        opened: `session` of the model.
        placed: where.

    Attributes:
        last: what it keeps.

    Raises:
        UsageError: that device records nothing.
    """

    def __init__(self, opened: Callable[..., Any], placed: Placement) -> None:
        self._opened, self._placed = opened, placed.capturing()
        self._key: tuple[dict[str, int], set[str]] = ({}, set())
        self.last: Recorded | None = None

    def __call__(self, model: Session, feed: Mapping[str, Array]) -> Recorded:
        """That for inputs of these names and sizes.

        Args:
            model: a session of the same model.
            feed: all its inputs.
        """
        sizes = _sizes_of(model, feed)
        if self.last is None or self._key != (sizes, {*feed}):
            self.last = None  # its memory first
            session = self._opened(device=self._placed, sizes=sizes)
            self.last, self._key = Recorded(session, self._placed), (sizes, {*feed})
        return self.last


def _sizes_of(session: Session, feed: Mapping[str, Array]) -> dict[str, int]:
    """The sizes that the model leaves open, by its names for them, as `feed` has them."""
    return {
        name: size
        for item in session.get_inputs()
        for name, size in zip(item.shape, feed[item.name].shape, strict=True)
        if isinstance(name, str)
    }
