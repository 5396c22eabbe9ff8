"""Looks for what breaks installations; each finding names its cause and remedy."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.runtime.providers import DEVICES, FLAVOURS, survey
from fp4dit_onnx.runtime.session import MIN_ORT
from fp4dit_onnx.system.nvidia import Driver, Trouble, nvidia_driver
from fp4dit_onnx.system.outputs import scratch_folder
from fp4dit_onnx.system.versions import version as _version

__all__ = ["CHECKS", "Diagnosis", "Finding", "diagnose"]

BASE = ("numpy", "onnx", "pillow", "rich", "safetensors", "tokenizers", "typer")
EXPORT = ("torch", "diffusers", "transformers", "onnx-graphsurgeon", "onnxscript")
VIEW = ("netron",)
REINSTALL = "reinstall:  pip install --force-reinstall --no-deps fp4dit-onnx"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: what was looked at.
        ok: whether it works.
        needed: without it `generate` does not work; else an optional part is absent.
        found: versions, places.
        cause: why it fails; empty where it works.
        cure: what to do; empty where it works.
    """

    name: str
    ok: bool
    needed: bool
    found: str
    cause: str = ""
    cure: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, in the order in which to fix them."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything needed works."""
        return all(finding.ok for finding in self.findings if finding.needed)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}


def diagnose() -> Diagnosis:
    """Run every check; none raises, and none imports torch."""
    return Diagnosis(tuple(_run(name, check) for name, check in CHECKS.items()))


def _run(name: str, check: Callable[[str], Finding]) -> Finding:
    try:
        return check(name)
    except Exception as error:  # a check that breaks is itself a finding
        reason = " ".join(str(error).split()) or type(error).__name__
        return Finding(name, False, True, "failed", f"{type(error).__name__}: {reason}", REINSTALL)


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _python(name: str) -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding(name, True, True, f"{found}, {sys.executable}")


def _packages(name: str) -> Finding:
    versions = {package: _version(package) for package in ("fp4dit-onnx", *BASE)}
    absent = [package for package, version in versions.items() if version is None]
    found = ", ".join(f"{package} {version}" for package, version in versions.items())
    if not absent:
        return Finding(name, True, True, found)
    cause = f"not installed: {', '.join(absent)}"
    return Finding(name, False, True, found, cause, "run  pip install fp4dit-onnx")


def _onnxruntime(name: str) -> Finding:
    installed = {p: v for p in FLAVOURS if (v := _version(p))}
    found = ", ".join(f"{package} {version}" for package, version in installed.items())
    cure = "run  pip install 'fp4dit-onnx[cpu]'"
    if len(installed) > 1:
        both = " ".join(installed)
        cause = "several flavours are installed, and they overwrite each other's files"
        gpu = f"pip install {DEVICES['cuda'].requirement}"
        remedy = f"run  pip uninstall {both}  and then {cure}, or for NVIDIA GPUs  {gpu}"
        return Finding(name, False, True, found, cause, remedy)
    if importlib.util.find_spec("onnxruntime") is None:
        return Finding(
            name, False, True, found or "nothing", "ONNX Runtime is not installed", cure
        )
    import onnxruntime

    version = onnxruntime.__version__
    if _release(version) < MIN_ORT:
        cause = f"bundles use opset 21, which needs ONNX Runtime {MIN_ORT[0]}.{MIN_ORT[1]}"
        return Finding(name, False, True, found or version, cause, f"{cure} --upgrade")
    return Finding(name, True, True, found or version)


def _refused(device: str) -> Trouble | None:
    """What a session on `device` says, if it cannot be made."""
    import onnx

    from fp4dit_onnx.runtime.session import session
    from fp4dit_onnx.targets.tiny_model import tiny_linear

    with scratch_folder() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(tiny_linear(), path)
        try:
            session(path, device=device, library=False)
        except Fp4DitError as error:
            return Trouble(
                str(error), "update the driver, or install another version of the package"
            )
    return None


def _devices(name: str) -> Finding:
    """What sessions can run on besides the CPU, and what keeps them from it."""
    usable, troubles = survey()
    for kind in usable[:-1]:  # the last is the CPU
        if trouble := _refused(kind):
            troubles[kind] = trouble
    usable = tuple(kind for kind in usable if kind not in troubles)
    driver = nvidia_driver()
    gpus = f"; {driver}" if isinstance(driver, Driver) else ""
    found = ", ".join(usable) + gpus
    if not troubles:
        return Finding(name, True, False, found)
    cause = "; ".join(f"{kind}: {trouble.cause}" for kind, trouble in troubles.items())
    cure = "; ".join(trouble.cure for trouble in troubles.values())
    return Finding(name, False, False, found, cause, cure)


def _library_file(name: str) -> Finding:
    from fp4dit_onnx.runtime.library import library_path

    try:
        path = library_path()
    except (Fp4DitError, OSError) as error:
        cause = str(error)
        cure = f"{REINSTALL}  (from source: a C++17 compiler is needed)"
        return Finding(name, False, True, "nothing", cause, cure)
    return Finding(name, True, True, str(path))


def _library_loads(name: str) -> Finding:
    from fp4dit_onnx.runtime.library import Library

    try:
        library = Library()
    except (Fp4DitError, OSError) as error:
        cause = f"the system cannot load it: {error}"
        cure = (
            f"it was built for another system than {platform.machine()} or an older C library: "
            f"{REINSTALL} --no-binary fp4dit-onnx"
        )
        return Finding(name, False, True, "fails", cause, cure)
    kernels = ", ".join(library.isas)
    found = f"version {library.version}, runs {library.isa} (this machine can run: {kernels})"
    return Finding(name, True, True, found)


def _kernels(name: str) -> Finding:
    """Run one small quantized linear with the library and without, and compare."""
    import numpy as np
    import onnx

    from fp4dit_onnx.runtime.session import session
    from fp4dit_onnx.targets.tiny_model import tiny_linear

    x = np.linspace(-1, 1, 3 * 32, dtype=np.float32).reshape(3, 32)
    with scratch_folder() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(tiny_linear(), path)
        with_library, without = (
            session(path, library=library, threads=1).run(None, {"x": x})[0]
            for library in (True, False)
        )
    error = float(np.abs(with_library - without).max())
    bound = 32 * float(np.finfo(np.float32).eps) * float(np.abs(without).max())
    found = f"largest difference between kernels and function bodies {error:.1e}"
    if error <= bound:
        return Finding(name, True, True, found)
    cause = f"the library's results differ from the operators' definition (bound {bound:.1e})"
    return Finding(name, False, True, found, cause, f"{REINSTALL}; report it if it stays")


def _targets(name: str) -> Finding:
    """Which forms of a bundle the runtimes here load without the library."""
    from fp4dit_onnx.targets.capability import capabilities

    loads = capabilities()
    fits = {r: [t for t, why in targets.items() if not why] for r, targets in loads.items()}
    found = "; ".join(f"{runtime}: {', '.join(t) or 'none'}" for runtime, t in fits.items())
    return Finding(name, bool(found), False, found or "no runtime")


def _demo(name: str) -> Finding:
    from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint

    try:
        checkpoint = open_checkpoint()
    except Fp4DitError as error:
        return Finding(name, False, False, "unusable", str(error), REINSTALL)
    return Finding(name, True, False, str(checkpoint.folder))


def _extra(packages: tuple[str, ...], extra: str, purpose: str) -> Callable[[str], Finding]:
    def check(name: str) -> Finding:
        versions = {package: _version(package) for package in packages}
        present = ", ".join(f"{p} {v}" for p, v in versions.items() if v) or "nothing"
        absent = [package for package, version in versions.items() if version is None]
        if not absent:
            return Finding(name, True, False, present)
        cause = f"not installed, {purpose}: {', '.join(absent)}"
        return Finding(
            name, False, False, present, cause, f"run  pip install 'fp4dit-onnx[{extra}]'"
        )

    return check


CHECKS: dict[str, Callable[[str], Finding]] = {
    "python": _python,
    "packages": _packages,
    "onnxruntime": _onnxruntime,
    "devices": _devices,
    "library file": _library_file,
    "library loads": _library_loads,
    "kernels": _kernels,
    "targets": _targets,
    "demo pipeline": _demo,
    "extra export": _extra(EXPORT, "export", "needed by export and evaluate only"),
    "extra view": _extra(VIEW, "view", "needed to look at models in Netron only"),
}
"""Every check, in the order in which to fix what fails."""
