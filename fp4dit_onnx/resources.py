"""What a process has used: memory and time, measured by itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Resources", "peak_rss"]

_STATUS = Path("/proc/self/status")


def peak_rss() -> int | None:
    """Largest resident set of this process so far in bytes; None where the system does not say."""
    if _STATUS.exists():
        # Of this program alone; getrusage hands a parent's peak down to its children.
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


class Resources:
    """Seconds by stage, and the peak of memory before the work and in all."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._before = peak_rss()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; several of one name add up."""
        start = time.monotonic()
        try:
            yield
        finally:
            passed = time.monotonic() - start
            self._seconds[name] = self._seconds.get(name, 0.0) + passed

    def imported(self) -> None:
        """Note that all packages are loaded: what comes from here on is the work's own."""
        self._before = peak_rss()

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest; bytes are null where the system does not say."""
        return {
            "peak_rss_bytes": peak_rss(),
            "peak_rss_bytes_after_imports": self._before,
            "seconds": {
                **{name: round(s, 2) for name, s in self._seconds.items()},
                "total": round(time.monotonic() - self._start, 2),
            },
        }
