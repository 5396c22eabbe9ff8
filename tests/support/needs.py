"""What tests need and a machine may lack."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["absent"]


def absent(reason: str) -> NoReturn:
    """Skips the test, or fails it in CI, which has all that tests need."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
