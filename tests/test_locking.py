"""One process at a time on an output or a work folder; the others are told who it is."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fp4dit_onnx import cli
from fp4dit_onnx.bundle.bundle import new_bundle, put_files
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.system import locking
from fp4dit_onnx.system.locking import locked

HOLD = """
import sys
from pathlib import Path
from fp4dit_onnx.system.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a folder until its input ends."""
    words = [sys.executable, "-P", "-c", HOLD, str(folder)]
    with subprocess.Popen(words, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_lock_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".b.lock")
    with pytest.raises(UsageError, match="is not a plain file: delete it"), locked(tmp_path / "b"):
        pass


def test_the_second_is_told_who_the_first_is(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "bundle"
    with holder(output) as process:
        with pytest.raises(SystemExit) as left:
            cli.main(["convert", str(demo_bundle), "-o", str(output)])
        told = capsys.readouterr().err
        assert (left.value.code, told.count("\n")) == (2, 1)
        who = f"{output} is in use by process {process.pid} on {platform.node()} since 20"
        assert told.startswith(f"error: {who}")
        assert not output.exists()
        with pytest.raises(UsageError, match="is in use by process"):
            put_files(output, {"report.html": b""})
    assert list(tmp_path.iterdir()) == []  # the first has ended, and takes its folders with it


def test_a_lock_that_was_left_is_taken_over_and_that_is_said(tmp_path: Path) -> None:
    notes: list[str] = []
    with holder(tmp_path / "bundle") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert [p.name for p in tmp_path.iterdir()] == [".bundle.lock"]
    for _ in range(2):
        with locked(tmp_path / "bundle", notes.append):
            pass
    gone = f"{tmp_path / 'bundle'}: the lock of process {process.pid} on {platform.node()} since "
    assert [note.startswith(gone) for note in notes] == [True]
    assert list(tmp_path.iterdir()) == []


def test_of_many_who_want_one_new_folder_one_wins(tmp_path: Path) -> None:
    output, ready = tmp_path / "bundle", threading.Barrier(8)
    won: list[int] = []

    def write(number: int) -> None:
        ready.wait()
        try:
            with new_bundle(output) as folder:
                (folder / "quantization.json").write_text(str(number))
        except UsageError:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (output / "quantization.json").read_text() == str(won[0])
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_what_knows_no_lock_is_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "bundle"

    def write() -> None:
        with new_bundle(output) as folder:
            (folder / "quantization.json").write_text("ours")
            output.mkdir()
            (output / "quantization.json").write_text("theirs")

    with pytest.raises(UsageError, match="is not empty"):
        write()
    assert (output / "quantization.json").read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_exports_do_not_share_a_work_folder(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from fp4dit_onnx.exporting.export import ExportRequest, export

    work = tmp_path / "work"
    request = ExportRequest(tmp_path / "bundle", method="fp-rtn", work=work, report=False)
    with (
        locked(work),
        pytest.raises(UsageError, match=rf"{work} is in use by process {os.getpid()}"),
    ):
        export(request)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_whose_parent_is_closed_has_its_lock_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != tmp_path and access(p, mode))
    with locked(folder):
        assert [p.name for p in folder.iterdir()] == [".lock"]
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no fcntl")
@pytest.mark.parametrize(
    ("host", "pid", "free"),
    [
        (platform.node(), os.getppid(), False),
        (platform.node(), None, True),
        ("elsewhere", None, False),
    ],
)
def test_without_locks_of_the_system_the_process_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, pid: int | None, *, free: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if pid is None:
        with subprocess.Popen([sys.executable, "-c", ""]) as ended:
            pid = ended.pid
    monkeypatch.setattr(locking.fcntl, "flock", refuse)
    (tmp_path / ".bundle.lock").write_text(
        f"process {pid} on {host} since 2026-01-01 00:00:00 +0000"
    )
    if free:
        with locked(tmp_path / "bundle"):
            assert f"process {os.getpid()}" in (tmp_path / ".bundle.lock").read_text()
        return
    with (
        pytest.raises(UsageError, match=rf"in use by process {pid} on {host} .* delete "),
        locked(tmp_path / "bundle"),
    ):
        pytest.fail("the body must not run")


def test_a_lock_file_says_nothing_else(tmp_path: Path) -> None:
    """It is no place for others' words in our messages."""
    (tmp_path / ".bundle.lock").write_text("\x1b[2J or a link to click")
    notes: list[str] = []
    with locked(tmp_path / "bundle", notes.append):
        assert notes == []
