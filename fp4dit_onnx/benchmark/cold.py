"""Calls and loading as they are after other work: nothing of them in the CPU's caches, or in memory."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np

from fp4dit_onnx.errors import UsageError

__all__ = ["cache_bytes", "drop_pages", "evictor"]

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_CACHE = 64 * 2**20
"""Bytes of the largest cache where the system does not say."""
FACTOR = 2
"""The buffers that are walked, over the cache they are to fill."""
LEAST = 8 * 2**20
"""Bytes of the buffer of a core, which fills the caches that it shares with no other."""


def cache_bytes(folder: Path = CACHES) -> int:
    """Of the largest cache of a core."""
    texts = (path.read_text().strip() for path in folder.glob("index*/size"))
    found = (re.fullmatch(r"(\d+)([KM])", text) for text in texts)
    sizes = [int(m[1]) * {"K": 2**10, "M": 2**20}[m[2]] for m in found if m]
    return max(sizes, default=UNKNOWN_CACHE)


@cache
def evictor() -> Callable[[], None]:
    """A function that pushes everything out of the caches of all usable cores.

    A thread bound to each core writes to a buffer of its own; together the buffers are `FACTOR` times
    the largest cache, so that the core's own caches and the shared one hold nothing else.

    Raises:
        UsageError: the system binds no threads to cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("cold calls bind a thread to each core, which works on Linux alone")
    cores = sorted(os.sched_getaffinity(0))
    nbytes = max(FACTOR * cache_bytes() // len(cores), LEAST)
    buffers = {core: np.zeros(nbytes, np.uint8) for core in cores}

    def walk(core: int) -> None:
        os.sched_setaffinity(0, {core})  # of this thread
        np.add(buffers[core], 1, out=buffers[core])

    def evict() -> None:
        threads = [threading.Thread(target=walk, args=(core,)) for core in cores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return evict


def drop_pages(folders: Iterable[Path]) -> None:
    """Let the system forget what it holds in memory of the files in `folders`: they are read anew.

    Raises:
        UsageError: the system takes no such advice.
    """
    if not hasattr(os, "posix_fadvise"):
        raise UsageError("cold loading drops the pages of files, which works on Linux alone")
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())  # pages that are not written yet stay
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
