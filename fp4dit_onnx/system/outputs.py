"""Where results are written: looked at before the work for them, and written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from fp4dit_onnx.errors import UsageError

__all__ = [
    "check_file",
    "check_place",
    "check_room",
    "made_parents",
    "scratch_folder",
    "written_whole",
]

SMALL = 1 << 20
"""Bytes that a file of a size not known beforehand is taken to need."""


def check_place(path: Path, needed: int = SMALL) -> None:
    """Check that something can be made at `path`; its folders need not be there.

    Args:
        path: file or folder to be.
        needed: its bytes.

    Raises:
        UsageError: a file stands where a folder is wanted, the folder cannot be written to, the name
            is impossible, or there is no room.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that is too long or has a NUL, a closed folder
        why = getattr(error, "strerror", None) or error
        raise UsageError(
            f"output {path} cannot be written ({why}): choose another output"
        ) from error
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is a file: expected a folder to hold the output; choose another output"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"folder {folder} cannot be written to: choose another output")
    check_room(folder, needed)


def check_room(folder: Path, needed: int) -> None:
    """Raise UsageError where the disk of `folder`, which exists, has not `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f"{folder} has {_size(free)} free, the output needs {_size(needed)}: free some "
            "space, or choose another output"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def check_file(path: Path, *, overwrite: bool = True, needed: int = SMALL) -> None:
    """Check that a file can be written to `path`, before any work is done for it.

    Args:
        path: file to be.
        overwrite: it may be there.
        needed: its bytes.

    Raises:
        UsageError: see `check_place`; also where `path` is a folder or a device, write-protected, or
            there already without `overwrite`.
    """
    check_place(path, needed)
    if path.is_dir():
        raise UsageError(f"output {path} is a folder: expected the name of a file")
    if not os.path.lexists(path):
        return
    if path.exists() and not path.is_file():
        raise UsageError(f"output {path} is a device or a pipe: expected the name of a file")
    if not overwrite:
        raise UsageError(f"{path} exists: replace it with --overwrite, or choose another name")
    if path.exists() and not os.access(path, os.W_OK):
        raise UsageError(
            f"output {path} is write-protected: make it writable, or choose another output"
        )


@contextmanager
def made_parents(path: Path) -> Iterator[None]:
    """Make the folders above `path`; those made are removed again where nothing was put into them.

    Raises:
        UsageError: see `check_place`.
    """
    check_place(path, 0)
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()


def scratch_folder(beside: Path | None = None) -> TemporaryDirectory[str]:
    """A new folder that is deleted with what is in it at the end of a ``with``.

    Windows deletes no file that is open, such as one that a session has mapped: it stays there.

    Args:
        beside: the folder to make it in; by default the system's own for such files.
    """
    windows = sys.platform == "win32"
    return TemporaryDirectory(prefix="fp4dit-onnx-", dir=beside, ignore_cleanup_errors=windows)


@contextmanager
def written_whole(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a file beside `path` to write to, which takes its place at the end.

    On any exception it is removed and `path` is as it was.

    Args:
        path: file to be; its folders are made.
        overwrite: replace what is there, or what another process has put there meanwhile.

    Raises:
        UsageError: it cannot be written, or is there without `overwrite`.
    """
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    partial = path.with_name(f".{token}.partial{path.suffix}")
    try:
        with made_parents(path):
            try:
                yield partial
                partial.replace(path) if overwrite else _put(partial, path)
            finally:
                partial.unlink(missing_ok=True)
    except FileExistsError as error:
        raise UsageError(
            f"{path} exists: replace it with --overwrite, or choose another name"
        ) from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror or error}): choose another output"
        ) from error


def _put(partial: Path, path: Path) -> None:
    """Rename a file to a name that nothing has: of two processes one wins."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without several names of a file
        if path.exists():
            raise FileExistsError(path) from None
        partial.replace(path)
