"""The custom-op library: where it is, and what it says about itself.

ONNX Runtime loads the library by path (``SessionOptions.register_custom_ops_library``); here the
same file is opened with ctypes, to ask for its version, its instruction set and its counts of
kernel calls. Both share one copy in the process, so the counts are those of the sessions.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.files import GIVEN, parse_object
from fp4dit_onnx.system.resources import checked_threads
from fp4dit_onnx.system.shared_objects import file_name

__all__ = [
    "DOT_KINDS",
    "Library",
    "LibraryError",
    "dot_product_limit",
    "library_path",
    "select_isa",
    "supported_isas",
]

DOT_KINDS = ("int8", "int16", "float")
"""What kernels multiply, in the library's order."""

LIMIT_ROUNDS, LIMIT_SECONDS = 10_000_000, 0.3  # of a run; of measuring a limit

ENVIRONMENT = "FP4DIT_LIBRARY"

_NAME = file_name("fp4dit_ops")


class LibraryError(Fp4DitError):
    """The custom-op library is absent or cannot be used."""


def _installed_paths() -> list[Path]:
    """Where an installation may hold the library; an editable one splits the package in two."""
    paths = [Path(__file__).resolve().parents[1] / "lib" / _NAME]
    try:
        installed = importlib.metadata.distribution("fp4dit-onnx")
    except importlib.metadata.PackageNotFoundError:
        return paths
    paths.append(Path(str(installed.locate_file(f"fp4dit_onnx/lib/{_NAME}"))))
    return paths


def library_path() -> Path:
    """The file of the custom-op library.

    The environment's ``FP4DIT_LIBRARY`` names it; otherwise it is what was installed with the
    package.

    Raises:
        LibraryError: there is no such file; the message lists where it was looked for.
    """
    override = os.environ.get(ENVIRONMENT)
    if override:
        if Path(override).is_file():
            return Path(override).resolve()
        raise LibraryError(
            f"the environment's {ENVIRONMENT} is {override!r}, and there is no such file: "
            f"correct it, or unset it to use the installed library"
        )
    paths = _installed_paths()
    for path in paths:
        if path.is_file():
            return path
    looked = " and ".join(str(path) for path in paths)
    raise LibraryError(
        f"there is no custom-op library: looked for {looked}. Build and install it with  "
        f"pip install .  in the project's folder, or name one in the environment's {ENVIRONMENT}"
    )


class Library:
    """The custom-op library of this process.

    Args:
        path: its file; by default `library_path`.

    Attributes:
        path: the file that was opened.

    Raises:
        LibraryError: it cannot be found or opened, or is another library.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = library_path() if path is None else path
        try:
            self._library = ctypes.CDLL(str(self.path))
            for name in ("fp4dit_version", "fp4dit_isa", "fp4dit_isas"):
                getattr(self._library, name).restype = ctypes.c_char_p
            self._library.fp4dit_counters_json.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
            self._library.fp4dit_counters_json.restype = ctypes.c_size_t
            self._library.fp4dit_counters_reset.restype = None
            self._library.fp4dit_select_isa.argtypes = [ctypes.c_char_p]
            self._library.fp4dit_peak.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t]
            self._library.fp4dit_peak.restype = ctypes.c_double
        except (OSError, AttributeError) as error:
            raise LibraryError(
                f"{self.path} is not a custom-op library that can be used here ({error}): "
                f"build it again with  pip install .  in the project's folder"
            ) from error

    def _text(self, name: str) -> str:
        value: bytes = getattr(self._library, name)()
        return value.decode()

    @property
    def version(self) -> str:
        """The version of the package that it was built from."""
        return self._text("fp4dit_version")

    @property
    def isa(self) -> str:
        """The instruction set in use; empty if ``FP4DIT_ISA`` named one that cannot be used."""
        return self._text("fp4dit_isa")

    @property
    def isas(self) -> tuple[str, ...]:
        """The instruction sets that can be used here, best first."""
        return tuple(self._text("fp4dit_isas").split(","))

    @property
    def gpu_operators(self) -> tuple[str, ...]:
        """Operators that have kernels for NVIDIA's GPUs; none if it was built without, or before."""
        try:
            self._library.fp4dit_gpu_operators.restype = ctypes.c_char_p
        except AttributeError:
            return ()
        return tuple(filter(None, self._text("fp4dit_gpu_operators").split(",")))

    def select_isa(self, name: str | None) -> None:
        """Make sessions created from now on use the instruction set `name`.

        Args:
            name: one of `isas`; None goes back to what ``FP4DIT_ISA`` says, or the best.

        Raises:
            LibraryError: it cannot be used here.
        """
        if not self._library.fp4dit_select_isa(None if name is None else name.encode()):
            known = ", ".join(self.isas)
            raise LibraryError(f"instruction set {name!r}: expected one of {known}")

    def peak(self, isa: str, kind: str, rounds: int) -> float:
        """Repeat the dot-product instruction of `isa` on registers, in this thread.

        Args:
            isa: one of `isas`.
            kind: what is multiplied, one of `DOT_KINDS`.
            rounds: repetitions of the loop, some ten instructions each.

        Returns:
            The number of products computed; 0 where the instruction set has no such instruction.
        """
        return float(self._library.fp4dit_peak(isa.encode(), DOT_KINDS.index(kind), rounds))

    def counters(self) -> dict[str, int]:
        """Kernel calls of this process by operator, kind and instruction set.

        Returns:
            Counts that are not zero, under keys such as ``FpLinear/int8/avx2``. The kind is the
            type that is multiplied (FpLinear), written (FpQuantize*, FpUnpack) or read
            (FpDequantize). A call with nothing to compute is not counted.
        """
        size: int = self._library.fp4dit_counters_json(None, 0) + 256  # others may be counting
        buffer = ctypes.create_string_buffer(size)
        self._library.fp4dit_counters_json(buffer, size)
        counts: dict[str, int] = parse_object(
            buffer.value, "the library's counters", "counts", GIVEN
        )
        return counts

    def reset_counters(self) -> None:
        """Set all counts of this process to zero."""
        self._library.fp4dit_counters_reset()


def supported_isas() -> tuple[str, ...]:
    """The instruction sets that the library can use here, best first."""
    return Library().isas


def select_isa(name: str | None) -> None:
    """See `Library.select_isa`."""
    Library().select_isa(name)


def dot_product_limit(isa: str, kind: str, threads: int) -> float | None:
    """The most that `isa` can compute here: its dot-product instruction on registers.

    Args:
        isa: one of `supported_isas`.
        kind: one of `DOT_KINDS`.
        threads: as many run the loop at a time.

    Returns:
        10^9 operations per second (a product and its addition are two), the best of many runs of some
        milliseconds: shorter ones end before the scheduler has given each thread a core of its own.
        None where the instruction set has no such instruction.
    """
    library = Library()
    if library.peak(isa, kind, 1) == 0:
        return None
    best = 0.0
    end = time.perf_counter() + LIMIT_SECONDS
    with ThreadPoolExecutor(checked_threads(threads)) as pool:  # ctypes releases the lock
        while best == 0.0 or time.perf_counter() < end:
            start = time.perf_counter()
            products = sum(
                pool.map(lambda _: library.peak(isa, kind, LIMIT_ROUNDS), range(threads))
            )
            best = max(best, 2e-9 * products / (time.perf_counter() - start))
    return best
