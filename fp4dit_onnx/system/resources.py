"""What a process may use and has used: cores, memory and time."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import Count
from fp4dit_onnx.system.progress import Advance
from fp4dit_onnx.values import shown, whole

__all__ = [
    "Resources",
    "StageTimes",
    "Used",
    "available_memory",
    "checked_threads",
    "most_threads",
    "peak_rss",
    "return_memory",
    "usable_cores",
]

_THREADS_A_CORE = 4
_THREADS_ANYWHERE = 16
"""Few enough for any machine, and what a test or a measurement of scaling may ask of a small one."""
_MEMORY = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_WORTH_RETURNING = 2**27
"""Bytes of resident memory, below which there is little to return."""


@dataclass(frozen=True)
class Used:
    """What the export took; bytes are None where the system does not say.

    Attributes:
        peak_rss_bytes: largest resident set.
        peak_rss_bytes_after_imports: the same before any work.
        seconds: by stage; stages of the calibration count in ``calibration`` too.
        peaks: largest resident set up to the end of a stage.
    """

    peak_rss_bytes: Count | None = None
    peak_rss_bytes_after_imports: Count | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    peaks: Mapping[str, Count] = field(default_factory=dict)


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def most_threads() -> int:
    """How many threads may be asked for: more than the cores, not far above them."""
    return max(_THREADS_ANYWHERE, _THREADS_A_CORE * usable_cores())


def checked_threads(threads: int) -> int:
    """`threads`, which a pool is about to start.

    Raises:
        UsageError: none, or so many that they take the machine's memory and time from each other.
    """
    try:
        return whole("threads", threads, 1, most_threads())
    except UsageError as error:
        raise UsageError(
            f"threads {shown(threads)}: expected 1 to {most_threads()} on {usable_cores()} usable "
            "cores; leave the number out for all cores"
        ) from error


def available_memory() -> int | None:
    """Bytes that programs may still take without swapping; None where the system does not say."""
    if not _MEMORY.exists():
        return None
    lines = (line.split() for line in _MEMORY.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)


def _rss(status: Path, key: str) -> int | None:
    """Bytes in a line of Linux's account of a process; None where there is none."""
    if not status.exists():
        return None
    lines = (line.split() for line in status.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == key), None)


def peak_rss() -> int | None:
    """Largest resident set of this process so far in bytes; None where the system does not say."""
    # Of this program alone; getrusage hands a parent's peak down to its children.
    if (found := _rss(_STATUS, "VmHWM:")) is not None:
        return found
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def return_memory() -> None:
    """Give memory that is free inside of this process back to the system.

    glibc keeps what was freed between pieces that are in use: of a PixArt-XL, 8.6 GB of which 0.6 were
    in use. Other systems' allocators have no such call.
    """
    if (_rss(_STATUS, "VmRSS:") or 0) < _WORTH_RETURNING:
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)


class Resources:
    """Seconds by stage, and the peak of memory before the work and in all."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._peaks: dict[str, int] = {}
        self._largest: int | None = None
        self._before = self._peak()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def seconds(self, name: str) -> float:
        """Of a stage so far."""
        return self._seconds.get(name, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; several of one name add up."""
        start = time.monotonic()
        try:
            yield
        finally:
            passed = time.monotonic() - start
            self._seconds[name] = self._seconds.get(name, 0.0) + passed
            if (peak := self._peak()) is not None:
                self._peaks[name] = peak

    def imported(self) -> None:
        """Note that all packages are loaded: what comes from here on is the work's own."""
        self._before = self._peak()

    def used(self) -> Used:
        """For the manifest, up to now."""
        seconds = {**self._seconds, "total": self.elapsed}
        rounded = {name: round(passed, 2) for name, passed in seconds.items()}
        return Used(self._peak(), self._before, rounded, dict(self._peaks))

    def _peak(self) -> int | None:
        """Largest resident set so far.

        Linux adds up the pages that each processor counted, some of them late: a peak read later may be
        some pages less than one read before.
        """
        if (found := peak_rss()) is not None:
            self._largest = max(self._largest or 0, found)
        return self._largest


class StageTimes:
    """A reporter that notes the time and the memory of every stage.

    Args:
        resources: where.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "") -> Iterator[Advance]:
        """See `Reporter`."""
        with self._resources.stage(name):
            yield lambda steps, detail="", *, timed=True: None

    def note(self, text: str) -> None:
        """Nothing to note."""
