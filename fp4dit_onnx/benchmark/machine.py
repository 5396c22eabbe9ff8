"""What a benchmark ran on: the CPU, its limits, and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fp4dit_onnx.runtime.library import DOT_KINDS, dot_product_limit
from fp4dit_onnx.system.resources import usable_cores

__all__ = ["Machine"]

PACKAGES = ("fp4dit-onnx", "numpy", "onnxruntime", "torch", "openvino")


@dataclass(frozen=True)
class Machine:
    """What ran, and what it could do at most.

    Attributes:
        cpu: its model.
        cores: that this process may use.
        threads: that every backend got.
        load: processes that wanted a core in the minute before; None where the system does not say.
        system: kernel and architecture.
        versions: package -> version, of those installed.
        limits: instruction set -> kind of product -> 10^9 operations per second on `threads` threads,
            in a loop of the dot-product instruction on registers; None where there is none.
    """

    cpu: str
    cores: int
    threads: int
    load: float | None
    system: str
    versions: Mapping[str, str]
    limits: Mapping[str, Mapping[str, float | None]]

    @classmethod
    def measure(cls, isas: Sequence[str], threads: int) -> Machine:
        """Describe this machine and measure the limits of `isas`."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        limits = {
            isa: {kind: dot_product_limit(isa, kind, threads) for kind in DOT_KINDS}
            for isa in isas
        }
        return cls(cpu_model(), usable_cores(), threads, load, _system(), _versions(), limits)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name, or its architecture if it has none."""
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _versions() -> dict[str, str]:
    found = {package: _version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **{p: v for p, v in found.items() if v}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
