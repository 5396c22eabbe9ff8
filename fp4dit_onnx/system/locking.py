"""One process at a time on an output or a work folder.

The lock is a file beside the folder that says who holds it. The system holds it for the process and
lets go when that ends, however it ends: a file that is there and not held is stale. Where a file system
knows no locks, the file counts as long as its process runs.
"""

from __future__ import annotations

import os
import platform
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.system.outputs import made_parents

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["is_running", "locked"]

_HOLDER = re.compile(r"process (\d{1,9}) on (\S{1,255}) since [-+: 0-9]{1,40}")
_MOST_BYTES = 400
_LOCKED_BYTE = 1 << 30
"""Windows locks bytes, which nobody else can read then: one behind all that a lock file says."""


@contextmanager
def locked(folder: Path, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold the lock of a folder, which need not be there yet; folders above it are made.

    Args:
        folder: an output or a work folder.
        note: told of a lock that was left by a process which is gone.

    Raises:
        UsageError: another process, or another call in this one, holds it; see `made_parents` too.
    """
    folder = Path(os.path.realpath(folder))
    file = folder.with_name(f".{folder.name}.lock")
    if folder.is_dir() and not os.access(folder.parent, os.W_OK):
        file = folder / ".lock"  # nobody can replace a folder here, only write into it
    with made_parents(file):
        number = _acquired(file, folder)
        try:
            if left := _text(number):
                note(f"{folder}: the lock of {left}, which is gone, is taken over")
            since = time.strftime("%Y-%m-%d %H:%M:%S %z")
            _write(number, f"process {os.getpid()} on {platform.node()} since {since}")
            yield
        finally:
            _release(number, file)


def _release(number: int, file: Path) -> None:
    """Delete the lock file and let go of it; in this order, or it may be another's already.

    Windows deletes no file that is open: there it is deleted after, if nobody has opened it.
    """
    if sys.platform == "win32":
        os.close(number)
    with suppress(OSError):
        file.unlink()
    if sys.platform != "win32":
        os.close(number)


def _acquired(file: Path, folder: Path) -> int:
    """The descriptor of the lock file, locked."""
    while True:
        try:
            number = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise UsageError(
                f"lock {file} cannot be opened ({error.strerror}): delete it"
            ) from error
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise UsageError(f"lock {file} is not a plain file: delete it")
        if not _lock(number):
            holder = _text(number) or "another process"
            os.close(number)
            raise UsageError(
                f"{folder} is in use by {holder}: wait for its end, or choose another folder; if "
                f"nothing runs there, delete {file}"
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(number), os.stat(file)):
                return number
        os.close(number)  # of one who has just ended, and deleted it


def _lock(number: int) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(number, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # not on this file system
        pass
    else:
        return True
    holder = _HOLDER.fullmatch(_text(number))
    return holder is None or (holder[2] == platform.node() and not is_running(int(holder[1])))


def _text(number: int) -> str:
    """Who holds a lock, as its file says; empty if that says nothing."""
    os.lseek(number, 0, os.SEEK_SET)
    text = os.read(number, _MOST_BYTES).decode(errors="replace")
    return text if _HOLDER.fullmatch(text) else ""


def _write(number: int, text: str) -> None:
    os.lseek(number, 0, os.SEEK_SET)
    os.ftruncate(number, 0)
    os.write(number, text.encode())


def is_running(pid: int) -> bool:
    """Whether process `pid` may be alive; always True where that cannot be asked harmlessly."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
