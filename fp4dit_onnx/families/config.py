"""Sizes in a transformer's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fp4dit_onnx.errors import CheckpointError, UsageError
from fp4dit_onnx.files import shown

__all__ = ["Config", "count_of", "size_of"]

Config = Mapping[str, Any]


def size_of(config: Config, key: str) -> int:
    """A size that the family cannot do without.

    Raises:
        CheckpointError: it is absent, null, or no whole number from 1.
    """
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"config.json of the transformer: {key} is {shown(value) if key in config else 'absent'}, "
            "expected a whole number from 1; download the file again"
        )
    return value


def count_of(config: Config, key: str, usual: int) -> int:
    """A size that the class has a default for.

    Raises:
        UsageError: it is not a whole number from 1.
    """
    found = config.get(key, usual)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise UsageError(
            f"{key} of the transformer is {shown(found)}: expected a whole number from 1; download "
            "its config.json again"
        )
    return found
