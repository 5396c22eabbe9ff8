"""A bundle elsewhere, at an address of `fsspec`: its graph, and the sizes of the rest."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fp4dit_onnx.bundle.bundle import REQUIRED_FILES
from fp4dit_onnx.bundle.manifest import read_manifest
from fp4dit_onnx.bundle.names import MANIFEST
from fp4dit_onnx.errors import BundleError, MissingExtraError
from fp4dit_onnx.system.outputs import scratch_folder

__all__ = ["here", "url_of"]

_URL = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL
)  # a drive of Windows has one letter


def url_of(path: Path | str) -> str | None:
    """The address that a path is, whose slashes pathlib joins; None of a path on this machine."""
    found = _URL.fullmatch(Path(path).as_posix())
    if found is None:
        return None
    return f"{found[1]}://{'/' if found[1] == 'file' else ''}{found[2]}"


@contextmanager
def here(url: str) -> Iterator[Path]:
    """Yield a temporary folder with a bundle's manifest and graph; other files have their size alone.

    Args:
        url: such as ``s3://bucket/bundle``.

    Raises:
        BundleError: there is no bundle, or it cannot be reached.
        MissingExtraError: fsspec is not installed.
    """
    try:
        fsspec: Any = importlib.import_module("fsspec")
    except ModuleNotFoundError as cause:
        raise MissingExtraError("fsspec", "export") from cause
    with scratch_folder() as place:
        folder = Path(place)
        try:
            system, root = fsspec.core.url_to_fs(url)
            system.get_file(f"{root}/{MANIFEST}", str(folder / MANIFEST))
            for name in {*read_manifest(folder / MANIFEST).files, *REQUIRED_FILES}:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if name in REQUIRED_FILES:
                    system.get_file(f"{root}/{name}", str(target))
                elif system.exists(f"{root}/{name}"):
                    with target.open("wb") as stream:
                        stream.truncate(system.size(f"{root}/{name}"))
        except (ImportError, OSError, ValueError) as cause:
            said = " ".join(str(cause).split())
            raise BundleError(
                f"{url} cannot be read ({said}): expected the address of a bundle, as fsspec takes it"
            ) from cause
        yield folder
