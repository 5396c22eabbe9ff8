"""Changing a method of one object for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["patched"]


@contextmanager
def patched(owner: Any, name: str, change: Callable[..., Any]) -> Iterator[None]:
    """While open, a method of `owner` is `change`, which takes the method itself first."""
    original = getattr(owner, name)
    own = {key: value for key, value in vars(owner).items() if key == name}

    @functools.wraps(original)  # pipelines of diffusers look at the parameters
    def changed(*arguments: Any, **options: Any) -> Any:
        return change(original, *arguments, **options)

    setattr(owner, name, changed)
    try:
        yield
    finally:
        delattr(owner, name)  # the class's method shows again
        vars(owner).update(own)
