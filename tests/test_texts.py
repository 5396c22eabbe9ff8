"""Text from outside: a terminal is never told what to do, and what is not UTF-8 is right or a line."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from rich.console import Console

from fp4dit_onnx.cli import main
from fp4dit_onnx.commands.output import print_line, print_table
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.system.progress import RichReporter
from fp4dit_onnx.system.texts import clean, utf8_text

HOSTILE = "red\x1b[31m \x9b2J bell\a \r\n\u202egnp.exe [bold]b[/bold] [/] \udcff"
SHOWN = r"red\x1b[31m \x9b2J bell\x07 \r\n\u202egnp.exe [bold]b[/bold] [/] \udcff"
"""Markup of rich is text like any other."""
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def command(*words: object, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run in its own process, whose streams have the encoding that its variables say."""
    words = (sys.executable, "-P", "-m", "fp4dit_onnx", *words)
    given = [word if isinstance(word, bytes) else str(word) for word in words]
    environment = {**os.environ, **variables}
    return subprocess.run(given, capture_output=True, check=False, env=environment, timeout=120)


def test_text_in_other_scripts_is_left_alone() -> None:
    for text in (
        "ein Tiger, gezeichnet",
        "\u864e \U0001f42f\u200d\u2b1b",
        "\u05e0\u05de\u05e8",
        SHOWN,
    ):
        assert clean(text) == text
    assert clean(HOSTILE) == SHOWN


@pytest.mark.parametrize(
    "show",
    [
        print_line,
        lambda text: print_table(text, ("name",), [("x" * 100,)]),
        lambda text: print_table("", ("name",), [(text,)]),
        lambda text: RichReporter(Console(width=300)).note(text),
    ],
)
def test_every_way_to_the_screen_is_clean(
    show: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    show(HOSTILE)
    assert SHOWN in capsys.readouterr().out


def test_progress_is_clean() -> None:
    screen = io.StringIO()
    reporter = RichReporter(Console(file=screen, force_terminal=True, width=300))
    with reporter.stage(HOSTILE, 1) as advance:
        advance(1, HOSTILE)
    assert f"{SHOWN}: {SHOWN}" in screen.getvalue()
    assert "\x1b[31m \x9b" not in screen.getvalue()


def test_names_of_a_model_reach_the_terminal_as_text(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    name = HOSTILE.removesuffix("\udcff")
    node = onnx.helper.make_node("Add", [name, name], ["y"], name=name)
    value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [name])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [name])
    graph = onnx.helper.make_graph([node], "g", [value], [result])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(SystemExit) as left:
        main(["inspect", str(tmp_path / "model.onnx")])
    assert left.value.code == 0
    out, err = capfdbinary.readouterr()
    assert SHOWN.removesuffix(r"\udcff").encode() in out
    assert b"\x1b" not in out + err


def test_an_error_is_a_clean_line(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["inspect", "/absent/\x1b]0;title\a\udcff"])
    out, err = capfdbinary.readouterr()
    assert (left.value.code, out) == (2, b"")
    assert err.startswith(rb"error: /absent/\x1b]0;title\x07\udcff not found")


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, ASCII_LOCALE])
def test_streams_of_another_encoding(
    demo_folder: Path, tmp_path: Path, variables: dict[str, str]
) -> None:
    folder = tmp_path / "m\N{LATIN SMALL LETTER U WITH DIAERESIS}"
    shutil.copytree(demo_folder, folder)
    done = command("inspect", folder, **variables)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


@pytest.mark.parametrize("words", [["convert", "--list", "--json"], ["export", "--help"]])
def test_an_output_that_is_full_is_a_line(words: list[str]) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    program = [sys.executable, "-P", "-m", "fp4dit_onnx", *words]
    with full.open("wb") as stdout:
        done = subprocess.run(program, stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: [Errno 28] No space left")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("words", ["export --help", "recipes"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_output_discards_what_is_printed(words: str, closed: str) -> None:
    """As daemons and some schedulers start programs."""
    line = f'exec "{sys.executable}" -P -m fp4dit_onnx {words} {closed}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) == (not closed.startswith(">"))


def test_a_prompt_is_the_text_that_its_bytes_are(demo_bundle: Path, tmp_path: Path) -> None:
    """Whatever the locale; bytes that are no text are refused before anything is loaded."""
    words = ("generate", demo_bundle, "--steps", "1", "--prompt")
    pictures = []
    for number, variables in enumerate(({"PYTHONUTF8": "1"}, ASCII_LOCALE)):
        path = tmp_path / f"{number}.png"
        done = command(*words, "t\u00eate de tigre".encode(), "-o", path, **variables)
        assert done.returncode == 0, done.stderr
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]
    done = command(*words, b"t\xeate", "-o", tmp_path / "other.png", PYTHONUTF8="1")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(rb"error: prompt 't\udceate' is not UTF-8")
    assert not (tmp_path / "other.png").exists()


def test_words_that_are_no_utf8() -> None:
    assert utf8_text("prompt", "t\u00eate") == "t\u00eate"
    assert utf8_text("prompt", "t\udcc3\udcaate") == "t\u00eate"
    for text in ("\udcff", "\ud83d", "t\udcc3"):
        with pytest.raises(UsageError, match=r"prompt .* is not UTF-8"):
            utf8_text("prompt", text)
