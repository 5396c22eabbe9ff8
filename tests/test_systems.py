"""What differs between Linux, macOS and Windows, as far as it can be seen on one of them."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fp4dit_onnx import cli
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import append_text, write_text
from fp4dit_onnx.system import locking
from fp4dit_onnx.system.outputs import scratch_folder
from fp4dit_onnx.system.shared_objects import file_name, versioned_name

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [p for f in ("fp4dit_onnx", "passes", "calibration") for p in (ROOT / f).rglob("*.py")]


def text_writes(source: str) -> list[int]:
    """Lines that write text in the system's own encoding or with its own ends of lines."""
    calls = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call))
    found = []
    for call in calls:
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        modes = [a.value for a in call.args[:2] if isinstance(a, ast.Constant)]
        writes = any(isinstance(m, str) and m in ("w", "a", "x", "w+", "a+", "r+") for m in modes)
        opened = name == "open" and writes and "devnull" not in ast.dump(call)
        if opened or (name == "write_text" and isinstance(call.func, ast.Attribute)):
            found.append(call.lineno)
    return found


def test_scratch_folders_are_made_in_one_place() -> None:
    """Windows fails to delete one in which a session has still a file open."""
    made = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if "TemporaryDirectory(" in path.read_text(encoding="utf-8")
    ]
    assert made == ["fp4dit_onnx/system/outputs.py"]


def left_in_scratch(patch: pytest.MonkeyPatch) -> Path:
    with scratch_folder() as place:
        patch.setattr(os, "rmdir", refuse)
    return Path(place)


def test_what_windows_cannot_delete_yet_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(OSError, match="is being used"):
        left_in_scratch(patch)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        folder = left_in_scratch(patch)
    folder.rmdir()


def refuse(*_: object, **__: object) -> None:
    raise OSError(32, "The process cannot access the file because it is being used")


def test_a_pipe_that_nobody_reads_is_no_error_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    invalid = OSError(22, "Invalid argument")
    assert cli._reader_left(BrokenPipeError(32, "Broken pipe"))
    assert not cli._reader_left(invalid)
    monkeypatch.setattr(sys, "platform", "win32")
    assert cli._reader_left(invalid)
    assert not cli._reader_left(OSError(22, "Invalid argument", "a?b"))


def test_text_is_written_in_one_place() -> None:
    """Or a bundle's files would have other bytes where Windows wrote them."""
    bad = "p.write_text(t)\nopen(p, 'w')\np.open('a', encoding='utf-8')\np.open('wb')\nopen(p)\n"
    assert text_writes(bad) == [1, 2, 3]
    found = {
        str(path.relative_to(ROOT)): lines
        for path in SOURCES
        if (lines := text_writes(path.read_text(encoding="utf-8")))
    }
    # The kernel's switch takes a digit.
    assert list(found) == ["fp4dit_onnx/report/memory.py"], found


def test_text_has_the_same_bytes_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "linesep", "\r\n")
    write_text(tmp_path / "a", "ä\n")
    append_text(tmp_path / "a", "b\n")
    append_text(tmp_path / "b", "c\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\nb\n"
    assert (tmp_path / "b").read_bytes() == b"c\n"


def test_names_of_libraries() -> None:
    names = [file_name("fp4dit_ops", system) for system in ("linux", "darwin", "win32")]
    assert names == ["libfp4dit_ops.so", "libfp4dit_ops.dylib", "fp4dit_ops.dll"]
    assert versioned_name("cudart", 12, "win32") == "cudart64_12.dll"
    assert versioned_name("cudart", 12, "linux") == "libcudart.so.12"


@pytest.mark.skipif(sys.platform == "win32", reason="there it is the real thing")
def test_windows_locks_are_held_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows deletes no open file, and lets nobody read a byte that is locked."""
    opened: set[int] = set()

    def lock(number: int, mode: int, count: int) -> None:
        assert os.lseek(number, 0, os.SEEK_CUR) > locking._MOST_BYTES
        if opened:
            raise PermissionError(13, "Permission denied")
        opened.add(number)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if opened:
            raise PermissionError(13, "used by another process")
        os.unlink(path)

    def close(number: int, close=os.close) -> None:  # type: ignore[no-untyped-def]
        opened.discard(number)
        close(number)

    monkeypatch.setattr(sys, "platform", "win32")
    fake = SimpleNamespace(locking=lock, LK_NBLCK=2)
    monkeypatch.setattr(locking, "msvcrt", fake, raising=False)
    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(os, "close", close)
    notes: list[str] = []
    with (
        locking.locked(tmp_path / "bundle", notes.append),
        pytest.raises(UsageError, match="is in use by process"),
        locking.locked(tmp_path / "bundle"),
    ):
        pytest.fail("the body must not run")
    assert list(tmp_path.iterdir()) == []
    assert notes == []
