"""What every case of tools/hostile.py has: a stage with an altered copy, limits, a record."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hostile_files import CANARY, SECRET, alter

__all__ = ["Case", "alter_given", "limit", "staged"]

MEMORY = 3 * 2**30
"""Address space that a case may take beyond what its process begins with."""
CPU_SECONDS = 60


@dataclass
class Case:
    """One trial.

    Attributes:
        number: its seed.
        target: model, bundle or server.
        altered: the file, and what was done to it.
        command: the words given.
        code: how the process ended; negative for a signal.
        faults: what should not be.
        seconds: that it took.
        said: what it printed.
    """

    number: int
    target: str
    altered: str = ""
    command: str = ""
    code: int | None = None
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    said: str = ""


@contextmanager
def staged(root: Path, source: Path) -> Iterator[Path]:
    """A folder with a linked copy of `source` as ``given``, a secret, and empty places to write."""
    stage = Path(tempfile.mkdtemp(prefix="case-", dir=root))
    try:
        for name in ("home", "tmp", "cwd"):
            (stage / name).mkdir()
        (stage / SECRET).write_text(CANARY)
        linked_copy(source, stage / "given")
        yield stage
    finally:
        shutil.rmtree(stage)


def alter_given(rng: random.Random, given: Path) -> str:
    """Alter one file of a pipeline or a bundle, whose manifest then often agrees; says what was done."""
    files = sorted(p for p in given.rglob("*") if p.is_file())
    plain = [p for p in files if p.suffix in (".json", ".safetensors", ".onnx", ".txt", ".model")]
    path = rng.choice(plain if rng.random() < 0.95 else files)
    name = path.relative_to(given).as_posix()
    what = alter(rng, path, given)
    manifest = given / "quantization.json"
    of_bundle = manifest.is_file() and path != manifest
    if of_bundle and path.is_file() and not path.is_symlink() and rng.random() < 0.7:
        refresh_manifest(given, path)
        what += "; the manifest agrees"
    return f"{name}: {what}"


def refresh_manifest(folder: Path, path: Path) -> None:
    """Make a bundle's manifest say what `path` holds now, as whoever altered it would."""
    manifest = folder / "quantization.json"
    content = json.loads(manifest.read_bytes())
    data = path.read_bytes()
    content["files"][path.relative_to(folder).as_posix()] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
    }
    manifest.unlink()
    manifest.write_text(json.dumps(content))


def linked_copy(source: Path, target: Path) -> None:
    """A copy of a folder without its bytes: files are hard links, which `alter` replaces."""
    shutil.copytree(source, target, copy_function=os.link)


def limit() -> None:
    """Bound the memory and the time of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
