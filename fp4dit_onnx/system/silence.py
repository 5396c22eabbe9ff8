"""Keeping third parties' messages to their own developers off the user's screen."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' warnings, log lines, prints and progress bars.

    Errors reach the caller as exceptions. What was written to a stream opened before still shows,
    such as a `RichReporter`'s progress.
    """
    disabled, screen = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(screen),
            contextlib.redirect_stderr(screen),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
