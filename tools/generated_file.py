"""A file that a tool of this folder writes, and its ``--check``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ["write_or_check"]


def write_or_check(
    target: Path, text: str, source: str, arguments: list[str] | None = None
) -> int:
    """Write `text`, or with ``--check`` among the arguments say whether the file holds it.

    Args:
        target: the file.
        text: what it should hold.
        source: what it is made from, for the message.
        arguments: in place of those of the process.

    Returns:
        0, or 1 if ``--check`` found another text.
    """
    tool = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(description=f"write {target.name}, made from {source}")
    parser.add_argument("--check", action="store_true", help="compare, and change nothing")
    if not parser.parse_args(arguments).check:
        target.write_text(text, encoding="utf-8")
    elif not target.exists() or target.read_text(encoding="utf-8") != text:
        print(f"{target} differs from {source}: run  python tools/{tool}", file=sys.stderr)
        return 1
    return 0
