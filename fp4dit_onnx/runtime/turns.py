"""Parts of a pipeline that take turns: one at a time is in memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fp4dit_onnx.bundle.names import VAE_DECODER, VAE_ENCODER
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.providers import Placement
from fp4dit_onnx.runtime.session import Session
from fp4dit_onnx.system.resources import return_memory

__all__ = ["InTurn", "Turns"]


class Declared(NamedTuple):
    """An input or output of a model, as its session has it."""

    name: str
    shape: Sequence[Any]
    type: str


class Turns:
    """Opens each model when it is used, and closes the one before.

    Args:
        opened: opens a model, called as `session` is.
        placed: of all of them.

    Raises:
        UsageError: they are on a device, where tensors of one outlive its turn.
    """

    def __init__(self, opened: Callable[..., Session], placed: Placement) -> None:
        if not placed.on_cpu:
            raise UsageError(
                f"low memory on {placed.name}: expected the device cpu, where parts can take turns"
            )
        self._opened = opened
        self._open: tuple[InTurn, Session] | None = None

    def __call__(self, path: Path, **named: Any) -> InTurn:
        """A model that is opened at its turn; a VAE, which takes the most memory, without an arena."""
        if path.parent.name in (VAE_DECODER, VAE_ENCODER):
            named["arena"] = False
        return InTurn(self, partial(self._opened, path, **named))

    def session_of(self, part: InTurn) -> Session:
        """The session of a part, whose turn it is now."""
        last = self._open  # read once: another thread may have the next turn at any time
        if last is None or last[0] is not part:
            self._open = last = None
            gc.collect()  # sessions refer to themselves: `explaining` wraps their methods
            return_memory()
            self._open = last = part, part.opened()
        return last[1]


class InTurn:
    """A session that is there at its turn.

    Args:
        turns: that it takes part in.
        opened: opens it.
    """

    def __init__(self, turns: Turns, opened: Callable[[], Session]) -> None:
        self._turns, self.opened = turns, opened
        self._known: dict[str, Sequence[Declared]] = {}

    def get_inputs(self) -> Sequence[Declared]:
        """See `Session`."""
        return self._declared("get_inputs")

    def get_outputs(self) -> Sequence[Declared]:
        """See `Session`."""
        return self._declared("get_outputs")

    def get_overridable_initializers(self) -> Sequence[Declared]:
        """Slots of adapters."""
        return self._declared("get_overridable_initializers")

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """See `Session`."""
        return self._turns.session_of(self).run(outputs, feed)

    def _declared(self, what: str) -> Sequence[Declared]:
        """Asked once: it takes a turn."""
        if what not in self._known:
            found = getattr(self._turns.session_of(self), what)()
            self._known[what] = [Declared(one.name, one.shape, one.type) for one in found]
        return self._known[what]
