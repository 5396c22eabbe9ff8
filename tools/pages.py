"""What tools write into pages of docs/: a part of a page, and at which commit it was made."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path

__all__ = ["DOCS", "Section", "commit", "write_above_reading", "written_by"]

DOCS = Path(__file__).resolve().parent.parent / "docs"
READING = "\n## Reading\n"
"""Below it stands what a person wrote."""


@dataclass(frozen=True)
class Section:
    """The part of a page between ``<!-- NAME -->`` and ``<!-- end of NAME -->``.

    Attributes:
        page: Markdown file below docs/.
        name: of the marks.
    """

    page: str
    name: str

    @property
    def path(self) -> Path:
        """Of the page."""
        return DOCS / self.page

    def read(self) -> str:
        """What is there, without blank lines around it."""
        return self.cut(self.path.read_text(encoding="utf-8"))[1].strip("\n")

    def write(self, text: str) -> None:
        """Replace what is there."""
        self.path.write_text(self.replaced(text), encoding="utf-8")

    def replaced(self, text: str) -> str:
        """The page with `text` there."""
        before, _, after = self.cut(self.path.read_text(encoding="utf-8"))
        return f"{before}\n\n{text}\n\n{after}"

    def cut(self, page: str) -> tuple[str, str, str]:
        """The text of the page up to the first mark, between them, from the second."""
        begin, end = f"<!-- {self.name} -->", f"<!-- end of {self.name} -->"
        before, rest = page.split(begin)
        own, after = rest.split(end)
        return before + begin, own, end + after


def write_above_reading(page: Path, text: str) -> None:
    """Replace a page, if there is one, but for what stands from `READING` on."""
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    _, heading, reading = old.partition(READING)
    page.write_text(text + heading + reading, encoding="utf-8")


def written_by(command: str) -> str:
    """What stands above figures: which command of tools/ wrote them, when, and at which commit."""
    return f"Written by `python tools/{command}` on {date.today()}, commit {commit()}"


def commit() -> str:
    """Of the checkout, with ``-dirty`` where files differ from it."""
    command = ["git", "-C", str(DOCS), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
