"""Pipelines in other processes: pickled by their bundle, and not used across a fork."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.names import MANIFEST
from fp4dit_onnx.bundle.writing import new_bundle
from fp4dit_onnx.errors import UsageError

__all__ = ["check_process", "check_unchanged", "copy_bundle"]


def check_process(made_in: int) -> None:
    """Refuse a pipeline in a child process that was forked with it.

    Raises:
        UsageError: it was made in another process: its sessions' threads did not come along, and
            running one would wait for them without end.
    """
    if os.getpid() != made_in:
        raise UsageError(
            "this pipeline was opened before the process was forked, and threads of ONNX Runtime do "
            "not survive a fork: open it in the child, or start processes with "
            "multiprocessing.get_context('spawn')"
        )


def check_unchanged(opened: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to pickle a pipeline of which a part was replaced.

    Raises:
        UsageError: a part is not the one that was opened from the bundle.
    """
    for name, part in opened.items():
        if now.get(name) is not part:
            raise UsageError(
                f"{name} was replaced, and a pipeline is pickled as the path of its bundle: replace it "
                "where the pipeline is unpickled"
            )


def copy_bundle(source: Path, target: Path, *, overwrite: bool) -> None:
    """Copy the files that a bundle lists.

    Raises:
        UsageError: `target` is not empty, or does not fit on its disk; see `new_bundle`.
    """
    bundle = Bundle.open(source)
    needed = sum(file.bytes for file in bundle.manifest.files.values())
    with new_bundle(target, overwrite=overwrite, source=source, needed=needed) as folder:
        for name in (MANIFEST, *bundle.manifest.files):
            if (source / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, folder / name)
