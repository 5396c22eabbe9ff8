"""Outputs are looked at before work is done for them, and written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import Run

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.system.outputs import check_file, check_place, written_whole


def folder(place: Path) -> Path:
    (place / "out.png").mkdir()
    return place / "out.png"


def below_a_file(place: Path) -> Path:
    (place / "file").write_text("")
    return place / "file" / "deep" / "out.png"


def closed(place: Path) -> Path:
    (place / "closed").mkdir(mode=0o555)
    return place / "closed" / "out.png"


def protected(place: Path) -> Path:
    (place / "out.png").write_text("kept")
    (place / "out.png").chmod(0o444)
    return place / "out.png"


def pipe(place: Path) -> Path:
    os.mkfifo(place / "out.png")
    return place / "out.png"


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "folder": (folder, "out.png is a folder: expected the name of a file"),
    "below a file": (below_a_file, "file is a file: expected a folder"),
    "closed": (closed, "closed cannot be written to"),
    "protected": (protected, "out.png is write-protected"),
    "pipe": (pipe, "out.png is a device or a pipe"),
    "device": (lambda place: Path(os.devnull), "/dev/null is a device"),
    "long": (lambda place: place / ("x" * 300 + ".png"), "cannot be written .File name too long"),
}
"""What cannot be written to, and what is said."""


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions as for a user whom they bind, whoever runs the tests."""

    def access(path: Path | str, mode: int) -> bool:
        return mode & (os.stat(path).st_mode >> 6) == mode

    monkeypatch.setattr(os, "access", access)


def test_a_link_to_nothing_is_there(tmp_path: Path) -> None:
    link = tmp_path / "out.png"
    link.symlink_to(tmp_path / "nowhere")
    check_file(link)
    with pytest.raises(UsageError, match=r"out\.png exists"):
        check_file(link, overwrite=False)


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("case", FILES)
def test_files_that_cannot_be_written(tmp_path: Path, case: str) -> None:
    make, message = FILES[case]
    with pytest.raises(UsageError, match=message):
        check_file(make(tmp_path))


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    check_place(tmp_path / "new" / "bundle", 5 << 20)
    with pytest.raises(UsageError, match=r"has 5\.0 MiB free, the output needs 7\.0 MiB"):
        check_place(tmp_path / "new" / "bundle", 7 << 20)
    assert list(tmp_path.iterdir()) == []


def write(path: Path, error: Exception | None = None, theirs: str = "") -> None:
    """As a command does; `theirs` is what another process writes meanwhile."""
    with written_whole(path, overwrite=not theirs) as partial:
        partial.write_text("ours")
        if theirs:
            path.write_text(theirs)
        if error is not None:
            raise error


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with pytest.raises(RuntimeError):
        write(path, RuntimeError())
    with pytest.raises(UsageError, match=r"file\.txt cannot be written .No space left"):
        write(path, OSError(28, "No space left on device"))
    assert list(tmp_path.iterdir()) == []
    write(path)
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    assert path.read_text() == "ours"


def test_a_file_that_another_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with pytest.raises(UsageError, match="exists: replace it with --overwrite"):
        write(path, theirs="theirs")
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "theirs"


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command may begin its work."""
    from fp4dit_onnx.bundle import writing
    from fp4dit_onnx.runtime import pipeline

    def begun(*_: object, **__: object) -> None:
        pytest.fail("the work has begun")

    monkeypatch.setattr(pipeline, "session", begun)
    monkeypatch.setattr(writing, "locked", begun)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "BUNDLE", "-o", "FILE"], "expected a name ending in .html"),
        (["export", "-o", "NEW", "--state", "FILE"], "exists: replace it with --overwrite"),
        (["export", "-o", "NEW", "--save-recipe", "FILE"], "exists: replace it with --overwrite"),
        (["inspect", "LONG"], "File name too long; give another"),
        (["export", "-o", "LOOP"], "LOOP is a file: expected a new folder"),
    ],
)
def test_files_of_others_are_kept(
    words: list[str],
    message: str,
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "quantization.json"
    file.write_text("theirs")
    (tmp_path / "LOOP").symlink_to(tmp_path / "LOOP")
    names = {"FILE": file, "BUNDLE": demo_bundle, "NEW": tmp_path / "new", "LONG": "x" * 300}
    names["LOOP"] = tmp_path / "LOOP"
    forbid(monkeypatch)
    code, _, told = run(*(names.get(word, word) for word in words))
    assert code == 2
    assert message in told.splitlines()[-1]
    assert file.read_text() == "theirs"


COMMANDS = {
    "export": ["export", "--method", "fp-rtn", "--no-measure", "-o", "OUT"],
    "export --state": ["export", "--method", "fp-rtn", "-o", "NEW", "--state", "OUT"],
    "export --save-recipe": ["export", "-o", "NEW", "--save-recipe", "OUT"],
    "generate": ["generate", "BUNDLE", "--prompt", "a", "-o", "OUT"],
    "evaluate": ["evaluate", "BUNDLE", "--grid", "OUT"],
    "report": ["report", "BUNDLE", "--measure", "-o", "OUT"],
    "convert": ["convert", "BUNDLE", "-o", "OUT"],
    "serve": ["serve", "BUNDLE", "-o", "OUT"],
    "log": ["inspect", "BUNDLE", "--log-file", "OUT"],
}


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", ["below a file", "closed"])
def test_commands_look_before_they_work(
    command: str,
    case: str,
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    pytest.importorskip("torch")
    make, message = FILES[case]
    output = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    names = {"OUT": str(output), "NEW": str(tmp_path / "new"), "BUNDLE": str(demo_bundle)}
    forbid(monkeypatch)
    run(*(names.get(word, word) for word in COMMANDS[command])).refuses(message.split(":")[0])
    assert sorted(tmp_path.rglob("*")) == before
