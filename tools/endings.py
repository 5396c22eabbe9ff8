"""How a command of this folder ends where the package refuses: in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps

from fp4dit_onnx.errors import Fp4DitError

__all__ = ["ends_in_a_line"]


def ends_in_a_line(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """`main`, whose refusals are printed, and their exit codes returned."""

    @wraps(main)
    def ended(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except Fp4DitError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code

    return ended
