"""Backends: table entries, what one is when loaded, and why one may be absent."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fp4dit_onnx.benchmark.case import Array
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.system.silence import quiet

__all__ = ["Absent", "Backend", "Loaded", "package", "reason_of"]

CaseT = TypeVar("CaseT")

EXTRAS = {"onnxruntime": "cpu", "torch": "export", "openvino": "bench"}
"""Package -> the extra of fp4dit-onnx that brings it."""


class Absent(Exception):  # noqa: N818 - no error: it is reported and the others run
    """A backend cannot take part; the message is the reason."""


@dataclass(frozen=True)
class Loaded:
    """A backend that is ready to run.

    Attributes:
        run: computes once; what it returns is not looked at.
        result: what the last run computed, as numpy.
    """

    run: Callable[[], object]
    result: Callable[[], Array]


@dataclass(frozen=True)
class Backend(Generic[CaseT]):
    """One way to carry out a case.

    Attributes:
        name: in tables, and after ``--peer``.
        about: what it computes, in a few words.
        load: prepares it for a case and a number of threads; raises `Absent`, or whatever its
            package raises, where it cannot.
        package: what it runs on.
        isa: instruction set of this project's kernels; None for peers.
        by_default: whether it runs without being named.
        absent: a reason to leave it out that is known beforehand.
        prepare: makes the files that `load` reads, once and in a process of its own; of images
            only.
        model: the serialized ONNX model that it runs, of operators on ONNX Runtime only.
    """

    name: str
    about: str
    load: Callable[[CaseT, int], Loaded]
    package: str = "onnxruntime"
    isa: str | None = None
    by_default: bool = True
    absent: str | None = None
    prepare: Callable[[CaseT], object] | None = None
    model: Callable[[CaseT], bytes] | None = None

    def why_absent(self) -> str | None:
        """The reason to be absent that is known without loading it, or None."""
        if self.absent is None and importlib.util.find_spec(self.package) is None:
            return _not_installed(self.package)
        return self.absent


def package(name: str) -> Any:
    """An optional package.

    Raises:
        Absent: it is not installed, or importing it fails.
    """
    try:
        with quiet():
            return importlib.import_module(name)
    except ModuleNotFoundError as cause:
        if cause.name != name:
            raise Absent(f"{name} cannot be imported: {cause}") from cause
        raise Absent(_not_installed(name)) from cause
    except Exception as cause:  # a package may fail in any way
        raise Absent(f"{name} cannot be imported: {cause}") from cause


def _not_installed(name: str) -> str:
    return f"{name} is not installed: run  pip install 'fp4dit-onnx[{EXTRAS[name]}]'"


def reason_of(cause: Exception) -> str:
    """The first line of what went wrong with a backend."""
    text = str(cause).strip()
    first = text.splitlines()[0] if text else "no message"
    known = isinstance(cause, Absent | Fp4DitError)
    return first if known else f"{type(cause).__name__}: {first}"
