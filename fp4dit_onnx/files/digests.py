"""SHA-256 of files, of any size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["sha256_of", "sha256_of_all"]

_BLOCK = 1 << 20


def sha256_of(file: Path) -> str:
    """Of what a file holds, in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_all(files: Iterable[Path]) -> str:
    """Of files in their order, whatever their names and folders."""
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()
