"""Measured figures name their commit and command, and those older than their sources are found."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import figures
import pytest
from figures import FIGURES, UNMEASURED, Figures, on_page_markdown, stale

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MEASURED = re.compile(r"[0-9] ?(dB|ms|GB|GiB|MiB|GOP/s)\b|[0-9] s\b|\bcommit [0-9a-f]{7}")


def test_every_page_with_figures_is_known() -> None:
    found = {
        str(page.relative_to(ROOT))
        for page in PAGES
        if MEASURED.search(page.read_text(encoding="utf-8"))
    }
    assert found - UNMEASURED.keys() == {part.page for part in FIGURES}
    assert UNMEASURED.keys() <= found


@pytest.mark.parametrize("part", FIGURES, ids=lambda part: f"{part.page} {part.section}")
def test_figures_name_command_and_commit_and_speak_of_what_there_is(part: Figures) -> None:
    text = (ROOT / part.page).read_text(encoding="utf-8")
    assert part.command in text
    assert part.commits(text)
    assert [name for name in part.sources if not (ROOT / name).exists()] == []


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a source, another file, and a page that was measured at its first commit."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "a")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@b")
    (tmp_path / "docs").mkdir()
    git(tmp_path, "init", "-q")
    commit(tmp_path, "kernels.cc", "other.cc")
    first = git(tmp_path, "rev-parse", "--short", "HEAD")
    marked = f"<!-- t -->\n\nWritten at commit {first}.\n\n<!-- end of t -->"
    (tmp_path / "docs" / "speed.md").write_text(f"# Speed\n\n{marked}\n\nNot by commit 0123456.\n")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit(folder: Path, *names: str) -> None:
    for name in names:
        with (folder / name).open("a") as file:
            file.write("a line\n")
    git(folder, "add", *names)
    git(folder, "commit", "-q", "-m", "a change")


PART = Figures("docs/speed.md", "make speed", ("kernels.cc",), "t")


def test_figures_older_than_their_sources_are_found(checkout: Path) -> None:
    commit(checkout, "other.cc")
    assert list(stale(checkout, (PART,))) == []
    commit(checkout, "kernels.cc")
    commit(checkout, "kernels.cc", "other.cc")
    ((page, line),) = stale(checkout, (PART,))
    assert page == "docs/speed.md"
    assert line.startswith("docs/speed.md, t: measured at commit ")
    assert line.endswith("; 2 commits changed its sources since; measure again with  make speed")


def test_figures_of_a_commit_that_is_unknown_are_found(checkout: Path) -> None:
    part = Figures("docs/speed.md", "make speed", ("kernels.cc",))
    assert [line for _, line in stale(checkout, (part,))] == [
        "docs/speed.md: commit 0123456 is not in this checkout's history"
    ]


def test_the_page_of_the_web_site_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "stale", lambda: [("docs/speed.md", "speed.md: old")])
    old, other = (SimpleNamespace(file=SimpleNamespace(src_uri=n)) for n in ("speed.md", "a.md"))
    text = "# Speed\n\nFast.\n"
    assert on_page_markdown(text, page=other, config={}) == text
    assert on_page_markdown(text, page=old, config={}).splitlines() == [
        "# Speed",
        "",
        "> Some figures of this page are older than the code:",
        ">",
        "> - speed.md: old",
        "",
        "Fast.",
    ]
