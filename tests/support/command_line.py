"""What a command said, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Outcome", "Run"]


class Outcome(NamedTuple):
    """Exit code and output of one command."""

    code: int
    out: str
    err: str

    def refuses(self, *words: str) -> None:
        """Asserts that it is one line with `words`, and nothing on stdout."""
        assert (self.code, self.out, self.err.count("\n")) == (2, "", 1), self
        assert self.err.startswith("error: "), self
        assert [word for word in words if word not in self.err] == [], self


Run = Callable[..., Outcome]
"""Words of a command to what it said: the fixture `run`."""
