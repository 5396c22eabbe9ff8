"""Which symbolic links of a bundle are followed: those that stay in it, and those of a model cache.

A bundle may come from anyone. Were every link followed, one to a private file would be served to a
browser, copied into a bundle or written into a report. Hugging Face's cache, though, is made of
links: a snapshot's files are links to the folder ``blobs`` of the same model, so that is allowed.
"""

from __future__ import annotations

import os
from pathlib import Path

from fp4dit_onnx.errors import BundleError

__all__ = ["followed"]

_SNAPSHOTS, _BLOBS = "snapshots", "blobs"


def followed(path: Path, folder: Path) -> Path:
    """Where the file `path` of `folder` really is.

    Args:
        path: in `folder`; it may be a link, or lie behind one.
        folder: a bundle, or a folder in one.

    Raises:
        BundleError: it lies outside `folder` and outside the blobs of the cache that holds it.
    """
    real, root = _real(path), _real(folder)
    if real.is_relative_to(root):
        return real
    for parent in (root, *root.parents):
        if parent.parent.name == _SNAPSHOTS and real.parent == _real(parent.parents[1] / _BLOBS):
            return real
    raise BundleError(
        f"{path} is a link to {real}, outside {folder}: expected files, or the links of Hugging "
        f"Face's cache; copy what they lead to with  cp -rL {folder} NEW, if you trust it"
    )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # a loop of links is no error of its own
