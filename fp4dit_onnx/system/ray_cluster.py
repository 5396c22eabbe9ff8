"""Calls on the machines of a Ray cluster.

Arguments and results travel through Ray; what is large is files in folders that all machines share.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from fp4dit_onnx.errors import Fp4DitError, MissingExtraError, UsageError
from fp4dit_onnx.system.executors import Executor, Need, Task
from fp4dit_onnx.system.versions import versions

__all__ = ["connected"]

Result = TypeVar("Result")
RETRIES = 4
"""How often a call is made again after its process or machine was lost."""
AHEAD = 2
"""Calls that are sent for each that can be made at a time, so that no machine waits for the next."""
ANSWER, HEALTH = 5.0, 30.0
"""Seconds within which a head's port, and its service, must answer."""
WATCH, MISSED = 5.0, 60.0
"""Seconds between looks at the machines, and without one that is large enough."""


@contextmanager
def connected(
    address: str | None, need: Need, files: Iterable[Path], note: Callable[[str], None]
) -> Iterator[Executor]:
    """Makes calls on a cluster while open.

    Args:
        address: ``HOST:PORT`` of its head; None for RAY_ADDRESS, or what runs on this machine, or a
            cluster of this machine alone.
        need: what each call takes of a machine.
        files: that all machines must see under the same names.
        note: told what was found.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: nothing answers, a machine has other versions or does not see `files`, or none is
            large enough.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "ray")
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        _check_address(address)
    own = not ray.is_initialized()
    if own:
        _connect(address)
    try:
        _check_machines(files)
        cluster = _Cluster(need)
        count = len(_machines())
        machines = f"{count} machine" + "s" * (count > 1)
        note(f"Ray: {machines}, {cluster.slots} at a time with {need} each")
        yield cluster
    finally:
        if own:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raise UsageError where no head answers; Ray itself would wait for it without end."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in address:
        raise UsageError(
            f"Ray address {address!r}: expected HOST:PORT, as  ray start --head  prints it, on a "
            "machine of the cluster"
        )
    health = [sys.executable, "-P", "-m", "ray.scripts.scripts", "health-check"]
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
        subprocess.run(
            [*health, "--address", address], capture_output=True, check=True, timeout=HEALTH
        )
    except (OSError, OverflowError, subprocess.SubprocessError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "no answer"
        raise UsageError(
            f"Ray address {address}: no head of a cluster answers there ({why}): start one with  "
            "ray start --head, or correct --executor ray=HOST:PORT"
        ) from error


def _connect(address: str | None) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray's telemetry, of clusters it starts
    handler = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    here = os.getcwd()
    try:
        # Machines look for modules in the folder that this process is in: a clone's hides the package.
        os.chdir(os.sep)
        with suppress(ConnectionError):
            ray.init(address=address or "auto", **options)
        if not ray.is_initialized():
            ray.init(address="local", include_dashboard=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UsageError(f"Ray address {address or 'auto'}: {said}") from error
    finally:
        os.chdir(here)
        with suppress(ValueError):  # not in the main thread: Ray set none there
            signal.signal(signal.SIGTERM, handler)


def _machines() -> list[dict[str, Any]]:
    """What Ray says of each machine that is alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _check_machines(files: Iterable[Path]) -> None:
    """Look at every machine; raise UsageError where one has other versions or lacks a file."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    wanted = versions()
    paths = {str(path): path.stat().st_size for path in files}
    look = ray.remote(num_cpus=0, max_retries=0)(_inspection())
    answers = {}
    for node in _machines():
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        answers[look.options(scheduling_strategy=here).remote(tuple(wanted), paths)] = name
    for answer, name in answers.items():
        try:
            found, absent = ray.get(answer, timeout=HEALTH)
        except ray.exceptions.RayError as error:
            raise UsageError(
                f"machine {name} of the cluster makes no calls: {_line(error)}"
            ) from error
        if found != wanted:
            raise UsageError(
                f"machine {name} of the cluster has {_listed(found)}, this one {_listed(wanted)}: "
                "expected the same versions; install them there"
            )
        if absent:
            raise UsageError(
                f"machine {name} of the cluster does not see {absent[0]} as it is here: expected a "
                "folder that all machines share, under one name; choose it with --work, and keep the "
                "model in one too"
            )


def _inspection() -> Callable[..., tuple[dict[str, str | None], list[str]]]:
    """What a machine says of itself. Pickled by value: it runs where this package is not installed."""

    def inspect(
        packages: tuple[str, ...], paths: Mapping[str, int]
    ) -> tuple[dict[str, str | None], list[str]]:
        import importlib.metadata
        import os

        known = {one.name: one.version for one in importlib.metadata.distributions()}
        found = {name: known.get(name) for name in packages}
        absent = [p for p, n in paths.items() if not os.path.isfile(p) or os.path.getsize(p) != n]
        return found, absent

    return inspect


def _listed(found: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version or '(none)'}" for name, version in found.items())


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _called(function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    """Makes a call there."""
    return function(*arguments)


class _Cluster:
    """Makes calls on the cluster that Ray is connected to.

    Attributes:
        slots: calls that can be made at a time, by the machines that there are at the start.
        ahead: see `Executor`.
    """

    def __init__(self, need: Need) -> None:
        import ray

        self._need = need
        self.slots = self._slots()
        if not self.slots:
            raise UsageError(
                f"no machine of the cluster has {need} for a call: add a larger one, or set "
                "OMP_NUM_THREADS here to fewer CPUs"
            )
        self.ahead = AHEAD * self.slots
        threads = {name: str(need.cpus) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._call = ray.remote(
            num_cpus=need.cpus,
            num_gpus=need.gpus,
            memory=need.memory,
            max_retries=RETRIES,
            runtime_env={"env_vars": threads},
        )(_called)

    def _slots(self) -> int:
        wanted = {"CPU": self._need.cpus, "GPU": self._need.gpus, "memory": self._need.memory}
        return sum(
            int(min(node["Resources"].get(k, 0) // n for k, n in wanted.items() if n))
            for node in _machines()
        )

    def results(self, tasks: Iterable[Task[Result]]) -> Iterator[tuple[Task[Result], Result]]:
        """See `Executor`.

        Raises:
            UsageError: a call lost its machine too often, or there is none left that is large enough.
        """
        import ray

        sent: dict[Any, Task[Result]] = {}
        coming = iter(tasks)
        last_seen = time.monotonic()
        more = True
        while more or sent:
            room = more and len(sent) < self.ahead
            if room:
                task = next(coming, None)
                more = task is not None
                if task is not None:
                    sent[self._call.remote(task.function, task.arguments)] = task
            wait = 0 if room else WATCH
            ended, _ = ray.wait([*sent], num_returns=1, timeout=wait) if sent else ([], [])
            for call in ended:
                task = sent.pop(call)
                yield task, self._result(task, call)
            if ended or room or self._slots():
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > MISSED:
                raise UsageError(
                    f"the cluster has lost every machine with {self._need}: what is finished is "
                    "kept, the same command goes on from there"
                )

    @staticmethod
    def _result(task: Task[Result], call: Any) -> Result:
        import ray

        try:
            found: Result = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Fp4DitError):
                raise error.cause from error
            raise
        except ray.exceptions.RayError as error:
            raise UsageError(
                f"{task.name}: lost with its machine or process {RETRIES + 1} times, the last time: "
                f"{_line(error)}. What is finished is kept, the same command goes on from there"
            ) from error
        return found
