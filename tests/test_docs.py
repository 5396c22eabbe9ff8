"""The commands and the Python of README.md and docs/ do what the pages say; links lead somewhere.

Python blocks run, a page's in one namespace, in a folder with a bundle; a text block behind one is
what it prints. Of shell blocks every line is understood: ours are parsed by the command line, and
run where that is cheap. A block below ``<!-- not run: reason -->`` is shown as skipped.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from fp4dit_onnx import cli

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

REPLACED = {
    "path/to/pipeline": "PIPELINE",
    "path/to/PixArt-XL": "PIPELINE",
    "path/to/FLUX": "PIPELINE",
    "BUNDLE": "bundle",
    'output="bundle", bits="w4a6"': 'output="made", components="transformer", method="fp-rtn"',
}
"""What a page writes -> what is run in its place; PIPELINE is the demo's folder."""

RUN: dict[str, tuple[str, ...]] = {
    "convert": (),
    "doctor": (),
    "export": ("--dry-run",),
    "generate": ("--steps", "2", "--overwrite"),
    "inspect": (),
    "verify": ("--quick",),
}
"""Commands that are run, with options that make them cheap; the others are parsed only."""

NOT_OURS = {
    "build/": "what cmake built; tests/test_native.py and tests/test_cpp_example.py run it",
    "cmake": "tests/test_native.py and tests/test_cpp_example.py build",
    "ctest": "tests/test_native.py runs the C++ tests",
    "done": "of the Android build",
    "for": "the Android build: needs the NDK",
    "fp4dit_run_model": "tests/test_run_model.py",
    "open": "shows a file",
    "ray": "of Ray: tests/test_ray.py starts a cluster",
    "pytest": "this is it",
}
"""Programs that are left alone, and where they are tested."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str
    prints: str | None

    @property
    def name(self) -> str:
        """Page and line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r"```(?P<language>\w+)\n(?P<text>.*?)^```\n(?:```text\n(?P<prints>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")) + 1,
            found["language"],
            found["text"],
            found["reason"] or "",
            found["prints"],
        )
        for found in FENCE.finditer(text)
        if found["language"] == language
    ]


def replaced(text: str, pipeline: Path) -> str:
    for old, new in REPLACED.items():
        text = text.replace(old, new.replace("PIPELINE", str(pipeline)))
    return text


@pytest.fixture
def folder(tmp_path: Path, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: it holds ``bundle``."""
    shutil.copytree(demo_bundle, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- Python --------------------------------------------------------------------------------------


PYTHON_PAGES = [p for p in PAGES if blocks(p, "python") and p.parent.name != "ops"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python(
    page: Path, folder: Path, demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of docs/ops run in tests/test_operator_pages.py."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks(page, "python"):
        if block.not_run:
            continue
        code = "\n" * (block.line - 1) + replaced(block.text, demo_folder)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), module.__dict__)
        if block.prints is not None:
            assert printed.getvalue() == block.prints, block.name
    if page == ROOT / "README.md":
        assert_an_image(folder / "diffusers.png")
        assert len(module.__dict__["images"]) == 3


def assert_an_image(path: Path) -> None:
    """Of an apple: red in the middle, light at the corners."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.float64)
    height, width, _ = pixels.shape
    red, green, _ = pixels[
        height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4
    ].mean((0, 1))
    assert red > 1.5 * green
    assert pixels[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 200


# --- shell ---------------------------------------------------------------------------------------


def command_lines(text: str) -> Iterator[list[str]]:
    """The commands of a shell block as words: comments gone, lines joined, split at ``&&``."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def check_ours(words: Sequence[str]) -> None:
    """Every option that the line names exists, and what they say can be parsed."""
    command = words[0]
    assert command in cli.COMMANDS, f"no command {command}"
    cli.load_command(command).make_context(command, list(words[1:]))


def check_make(words: Sequence[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {word for word in words if "=" not in word}
    known = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert targets <= known, targets - known


def check_tool(words: Sequence[str]) -> None:
    """``python FILE``: the file is there, and each option stands in it."""
    if words[0] in ("-c", "-m"):
        return
    source = (ROOT / words[0]).read_text(encoding="utf-8")
    for option in words[1:]:
        if option.startswith("--"):
            assert f'"{option}"' in source, f"{words[0]} has no {option}"


def check_pip(words: Sequence[str]) -> None:
    """Every extra of ours that is named exists, and a wheel is of this version."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = settings.split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    known = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    for word in words:
        if found := re.match(r"(?:\.|fp4dit.onnx.*)\[(.*)\]$", word):
            asked = set(found[1].split(","))
            assert asked <= known, asked - known
        if ".whl" in word:
            version = re.search(r'^version = "(.*)"', settings, re.MULTILINE)
            assert version
            assert f"-{version[1]}-py3-none-" in word


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "fp4dit-onnx": check_ours,
    "make": check_make,
    "pip": check_pip,
    "python": check_tool,
}


def checked(words: list[str]) -> list[str]:
    """The words without environment variables, after the check of their program."""
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if not any(words[0].startswith(program) for program in NOT_OURS):
        assert words[0] in CHECKS, (
            f"{words[0]} is unknown: give it a check or a reason in tests/test_docs.py, or put "
            "<!-- not run: reason --> above the block"
        )
        CHECKS[words[0]](words[1:])
    return words


SHELL = [block for page in PAGES for block in blocks(page, "sh")]


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.name)
def test_shell_is_understood(block: Block) -> None:
    if block.not_run:
        pytest.skip(block.not_run)
    found = [checked(words) for words in command_lines(block.text)]
    assert found, "an empty block"


def cheap_lines() -> dict[str, str]:
    """Each different line that is run -> where it stands."""
    found: dict[str, str] = {}
    for block in SHELL:
        for words in command_lines(block.text):
            if words[0] == "fp4dit-onnx" and words[1] in RUN and not block.not_run:
                found.setdefault(shlex.join(words[1:]), block.name)
    return found


def exit_code(arguments: Sequence[str]) -> int:
    """What the command line exits with, run in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


def test_shell_runs(folder: Path, demo_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = cheap_lines()
    assert len(lines) > 8
    for number, (line, where) in enumerate(lines.items()):
        words = shlex.split(replaced(line, demo_folder))
        command, given = words[0], words[1:]
        if command == "export":
            for option in ("-o", "--output"):
                if option in given:
                    given[given.index(option) + 1] = f"new-{number}"
        extra = RUN[command]
        options = [
            *given,
            *(extra if extra[:1] != ("--dry-run",) or extra[0] not in given else ()),
        ]
        code = exit_code([command, *options])
        assert code == 0, f"{where}: {line}: exit code {code}: {capfd.readouterr().err}"


def test_wrong_lines_are_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        checked(["fp4dit-onnx", "inspect", "bundle", "--jsn"])
    with pytest.raises(AssertionError, match="no command draw"):
        checked(["fp4dit-onnx", "draw", "bundle"])
    with pytest.raises(AssertionError, match="has no --every"):
        checked(["python", "tools/check_wheel.py", "--every"])
    with pytest.raises(AssertionError, match="frobnicate is unknown"):
        checked(["frobnicate"])
    with pytest.raises(AssertionError, match="nothing"):
        checked(["make", "nothing"])
    with pytest.raises(AssertionError, match="gold"):
        checked(["pip", "install", ".[cpu,gold]"])
    with pytest.raises(AssertionError, match="gold"):
        checked(["pip", "install", "fp4dit_onnx-0.0.0-py3-none-any.whl[gold]"])
    with pytest.raises(AssertionError, match=r"0\.0\.0"):
        checked(["pip", "install", "fp4dit_onnx-0.0.0-py3-none-any.whl[cpu]"])
    assert list(command_lines("A=1 a b \\\n  c  # d\ne && f")) == [
        ["A=1", "a", "b", "c"],
        ["e"],
        ["f"],
    ]


# --- links, and the site -------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The ids that GitHub and mkdocs give to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading.lower())
        found.add(re.sub(r"\s", "-", plain.strip()))
    return found


def broken_links(page: Path) -> list[str]:
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        aim = (page.parent / path).resolve() if path else page
        if not aim.exists() or (anchor and anchor not in anchors(aim)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b` c\n[x](#a-b-c) [y](#a) [z](z.md) [w](https://example.org)\n")
    assert broken_links(page) == ["#a", "z.md"]


SOURCE_FILE = re.compile(r"`((?:[\w-]+/)+[\w.*-]+\.(?:py|cc|h|inc|md|txt|toml|cmake))`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    homes = (ROOT, ROOT / "fp4dit_onnx", ROOT / "custom_ops")
    absent = [
        name
        for name in SOURCE_FILE.findall(text)
        if not any(list(home.glob(name)) for home in homes)
    ]
    assert absent == [name for name in absent if f"would stand in `{name}`" in text]


def test_the_site_is_built(tmp_path: Path) -> None:
    """``mkdocs build --strict``: every page is in the navigation, and nothing comes from afar."""
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install mkdocs-material")
    pytest.importorskip("material", reason="needs mkdocs-material: pip install mkdocs-material")
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://", html)


def test_python_blocks_parse() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            ast.parse(block.text)
