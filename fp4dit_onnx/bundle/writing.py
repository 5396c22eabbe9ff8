"""Writes a bundle to a temporary folder and renames it: a bundle is never half-written."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fp4dit_onnx.bundle.names import MANIFEST
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.system.locking import is_running, locked
from fp4dit_onnx.system.outputs import check_place
from fp4dit_onnx.system.texts import utf8_text

__all__ = ["copy_files", "new_bundle"]


@contextmanager
def new_bundle(
    output: Path,
    overwrite: bool = False,
    *,
    source: Path | None = None,
    needed: int = 0,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Path]:
    """Yield a temporary folder beside `output`; on success it takes the place of `output`.

    Other processes that write to `output` are refused meanwhile. On any exception,
    KeyboardInterrupt included, the temporary folder is removed and `output` stays as it was. What a
    killed process left beside `output` is cleared first.

    Args:
        output: the bundle to be.
        overwrite: replace an older bundle there.
        source: the checkpoint that is read; `output` may not contain, equal or lie in it.
        needed: bytes that will be written, if they are known.
        note: told of a lock that is taken over.

    Raises:
        UsageError: `output` is a file, is not empty, overlaps `source`, is in use by another
            process or cannot be written; also where the disk gets full.
    """
    output = Path(os.path.realpath(output))
    utf8_text("output", str(output))  # what ONNX Runtime opens
    partial = output.parent / f".{output.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    check_place(partial, needed)
    check_output(output, overwrite, source=source)
    with locked(output, note):
        _recover(output)
        check_output(output, overwrite, source=source)
        try:
            partial.mkdir()
            yield partial
            check_output(output, overwrite)  # others know no lock
            _swap(partial, output)
        except BaseException as error:
            _remove(partial)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UsageError(
                    f"the disk of {output} is full: free some space and repeat the "
                    "command; an export resumes where it stopped"
                ) from error
            raise


def copy_files(source: Path, target: Path) -> None:
    """Copy the files in and below a folder: their bytes, not their permissions.

    A source that may not be written to would leave folders that nothing can be added to or deleted
    from. What is not a file, such as a pipe, stays behind.
    """
    for folder, _, names in os.walk(source):
        place = target / Path(folder).relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            if Path(folder, name).is_file():
                shutil.copyfile(Path(folder, name), place / name)


def _remove(folder: Path) -> None:
    """Delete a folder, write-protected or not."""
    for place, _, _ in os.walk(folder):  # from the top: what was closed is entered after
        with suppress(OSError):
            os.chmod(place, stat.S_IRWXU)
    shutil.rmtree(folder, ignore_errors=True)


def check_output(output: Path, overwrite: bool, *, source: Path | None = None) -> None:
    """Raise UsageError where a bundle may not be written to `output`."""
    target = Path(os.path.realpath(output))  # which stands a loop of links
    if source is not None:
        origin = Path(os.path.realpath(source))
        if target == origin or target in origin.parents or origin in target.parents:
            raise UsageError(
                f"output {output} overlaps the source {source}: expected a separate folder; "
                "choose another with --output"
            )
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise UsageError(f"output {output} is a file: expected a new folder; choose another name")
    held = sorted(p.name for p in output.iterdir())
    if not held:
        return
    found = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
    if MANIFEST not in held:
        raise UsageError(
            f"output {output} is not empty and holds no bundle (found {found}): expected a new or "
            "empty folder, or a bundle to replace with --overwrite; choose another, or empty it"
        )
    if not overwrite:
        raise UsageError(
            f"output {output} is not empty (found {found}): expected a new or empty folder; "
            "replace the bundle with --overwrite, or choose another folder"
        )


def _swap(partial: Path, output: Path) -> None:
    """Rename `partial` to `output`; an older folder there is set aside first and removed after."""
    if not output.exists():
        partial.rename(output)
        return
    old = output.parent / f".{output.name}.old-{os.getpid()}-{secrets.token_hex(4)}"
    output.rename(old)
    try:
        partial.rename(output)
    except BaseException:
        old.rename(output)
        raise
    _remove(old)


def _recover(output: Path) -> None:
    """Clear what processes that are gone left beside `output`.

    A process killed between the two renames of `_swap` left the older bundle aside: put back.
    """
    if not output.parent.is_dir():
        return
    pattern = re.compile(re.escape(f".{output.name}.") + r"(partial|old)-(\d+)-[0-9a-f]{8}")
    for path in sorted(output.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None or is_running(int(match[2])):
            continue
        if match[1] == "old" and not output.exists():
            path.rename(output)
        else:
            _remove(path)
