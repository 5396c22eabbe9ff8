"""Where work is done: calls that are pure functions of values, one after the other or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from fp4dit_onnx.errors import UsageError

__all__ = ["HERE", "LOCAL", "Executor", "Need", "Place", "Task", "place_of"]

Result = TypeVar("Result")

HERE, RAY = "local", "ray"


class Place(NamedTuple):
    """Where calls are made.

    Attributes:
        elsewhere: on a Ray cluster, not in this process.
        address: of its head, see `ray_cluster.connected`.
    """

    elsewhere: bool
    address: str | None = None


def place_of(text: str) -> Place:
    """What ``local``, ``ray`` or ``ray=HOST:PORT`` names.

    Raises:
        UsageError: another text.
    """
    kind, equals, address = text.partition("=")
    if text == HERE:
        return Place(elsewhere=False)
    if kind == RAY and (address or not equals):
        return Place(elsewhere=True, address=address or None)
    raise UsageError(
        f"executor {text!r}: expected {HERE}, {RAY} or {RAY}=HOST:PORT, the head of a cluster"
    )


@dataclass(frozen=True)
class Need:
    """What a call takes of its machine.

    Attributes:
        cpus: threads that it computes with; sums of other numbers of threads have other last bits.
        gpus: accelerators.
        memory: bytes.
    """

    cpus: int = 1
    gpus: int = 0
    memory: int = 0

    def __str__(self) -> str:
        """For messages."""
        counts = {"CPU": self.cpus, "GPU": self.gpus}
        counted = [f"{n} {what}" + "s" * (n > 1) for what, n in counts.items() if n]
        return ", ".join([*counted, f"{self.memory / 2**30:.1f} GiB of memory"])


@dataclass(frozen=True)
class Task(Generic[Result]):
    """A call that may be made anywhere.

    Attributes:
        name: for messages, and for whoever gets the result.
        function: of a module. It is given `on_step` by that name if it runs in this process.
        arguments: its others, in order; they can be pickled.
        on_step: told how far the call is, in whatever way the function does.
    """

    name: str
    function: Callable[..., Result]
    arguments: tuple[Any, ...]
    on_step: Callable[..., None]


class Executor(Protocol):
    """Makes calls.

    Attributes:
        ahead: how many tasks are taken, at most, before the first of them has ended.
    """

    ahead: int

    def results(self, tasks: Iterable[Task[Result]]) -> Iterator[tuple[Task[Result], Result]]:
        """Each task with its result, as they end; tasks are taken when there is room for one.

        Raises:
            Exception: what a call raises.
        """
        ...


class _Local:
    """Makes calls in this process: a task is taken once the result before it was."""

    ahead = 1

    def results(self, tasks: Iterable[Task[Result]]) -> Iterator[tuple[Task[Result], Result]]:
        """See `Executor`."""
        for task in tasks:
            yield task, task.function(*task.arguments, on_step=task.on_step)


LOCAL: Executor = _Local()
"""Makes calls in this process."""
