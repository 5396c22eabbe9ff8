"""Sources and bundles that may not be written to: what is made of them may be, and nothing is left."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fp4dit_onnx.bundle.writing import copy_files
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.exporting.components import copy_settings


def protect(folder: Path) -> None:
    """``chmod -R a-w``."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that can be cleared afterwards."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o777)


def python(place: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python as somebody whom permissions bind: root without its privilege to pass over them."""
    command = [sys.executable, "-P", *map(str, words)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("as root needs setpriv, of util-linux")
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)


def command(place: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return python(place, "-m", "fp4dit_onnx", *words)


def writable(folder: Path) -> bool:
    return all(path.lstat().st_mode & stat.S_IWUSR for path in (folder, *folder.rglob("*")))


def test_settings_are_copied_without_their_permissions(demo_copy: Path, tmp_path: Path) -> None:
    protect(demo_copy)
    (tmp_path / "bundle").mkdir()
    copy_settings(open_checkpoint(demo_copy), tmp_path / "bundle", steps=2)
    assert writable(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "scheduler" / "steps.json").is_file()


def test_what_is_no_file_stays_behind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("text")
    (source / "loop").symlink_to(source)
    os.mkfifo(source / "pipe")
    copy_files(source, tmp_path / "target")
    found = [p.relative_to(tmp_path).as_posix() for p in (tmp_path / "target").rglob("*")]
    assert sorted(found) == ["target/sub", "target/sub/file"]


def test_write_protected_leftovers_are_cleared(place: Path, demo_folder: Path) -> None:
    """Of a failure, and of an older bundle that is replaced; as a user whom permissions bind."""
    output = place / "bundle"
    shutil.copytree(demo_folder / "scheduler", output / "scheduler")
    (output / "quantization.json").write_text("{}")
    protect(output)
    code = (
        "import sys; from pathlib import Path; from fp4dit_onnx.bundle.bundle import new_bundle\n"
        "with new_bundle(Path(sys.argv[1]), True) as folder:\n"
        "    (folder / 'sub').mkdir(); (folder / 'sub' / 'file').write_text('new')\n"
        "    (folder / 'sub').chmod(0o555)\n"
        "    if sys.argv[2:]: raise SystemExit('failed')\n"
    )
    for words in (["fail"], []):
        done = python(place, "-c", code, output, *words)
        assert done.stderr.strip() == "".join(words and ["failed"])
        assert [p.name for p in place.iterdir()] == ["bundle"]
    assert (output / "sub" / "file").read_text() == "new"


def test_commands_on_what_may_not_be_written_to(
    place: Path, demo_copy: Path, demo_bundle: Path
) -> None:
    source, bundle = place / "source", place / "read only"
    shutil.copytree(demo_copy, source)
    shutil.copytree(demo_bundle, bundle)
    protect(source)
    protect(bundle)
    done = command(
        place,
        "export",
        source,
        "--method",
        "fp-rtn",
        "--no-measure",
        "--no-report",
        "-o",
        place / "made",
    )
    assert done.returncode == 0, done.stderr
    assert writable(place / "made")
    for words in (
        ("inspect", bundle),
        ("generate", bundle, "--prompt", "a", "--steps", 1, "-o", place / "a.png"),
        ("report", bundle, "-o", place / "a.html"),
        ("convert", bundle, "-o", place / "inlined", "--no-report"),
    ):
        done = command(place, *words)
        assert done.returncode == 0, done.stderr
    assert writable(place / "inlined")
    done = command(place, "report", bundle)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "read only cannot be written to" in done.stderr
    assert list(place.rglob(".*")) == []
