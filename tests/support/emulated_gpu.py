"""The CUDA kernels of custom_ops/gpu, compiled by the host's compiler and run on an emulated GPU."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.attention import value_group
from fp4dit_onnx.numbers.formats import FloatArray, FloatFormat

SOURCE = Path(__file__).resolve().parents[2] / "custom_ops"
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror")

# What the host side of operators needs beside its own files.
HOST = (
    "core/formats.cc",
    "cpu/packing/packed_weights.cc",
    "gpu/attention.cc",
    "gpu/linear.cc",
    "gpu/linear_plan.cc",
    "gpu/quantize.cc",
)
KERNELS = "gpu/emulation/emulate.cc"
"""Includes all kernels; the calls that the sanitizer's option adds are answered by races.cc."""
LARGEST = ctypes.c_size_t(-1).value
ACTS = (np.int8, np.int16, np.float32)
PATHS = ("direct", "decoded", "shared")
"""Ways of a linear, as custom_ops/gpu/linear.h has them."""


def compile_kernels(
    library: Path, flags: Sequence[str] = FLAGS, changed: Path | None = None
) -> Path:
    """Builds `library` of custom_ops, where files of `changed` stand in for those of the same names."""
    folders = [changed, SOURCE] if changed else [SOURCE]
    names = sorted(str(path.relative_to(SOURCE)) for path in SOURCE.glob("gpu/emulation/*.cc"))
    files = [next(f / name for f in folders if (f / name).is_file()) for name in (*names, *HOST)]
    files += changed.glob("*.cc") if changed else []
    files.remove(SOURCE / KERNELS)
    common = ["c++", *flags, "-ffp-contract=off", "-fno-exceptions", "-fPIC"]
    common += [f"-I{folder}" for folder in folders]
    kernels = library.with_suffix(".o")
    for command in (
        [*common, "-fsanitize=thread", "-c", "-o", kernels, SOURCE / KERNELS],
        [*common, "-shared", "-o", library, kernels, *files],
    ):
        result = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
    kernels.unlink()
    return library


class Guarded:
    """Memory of an array, with a page after it that nobody may read or write.

    The array ends at that page, or less than twice `alignment` bytes before it: it starts at a multiple
    of `alignment`, and of no larger power of two.
    """

    def __init__(self, values: npt.NDArray[np.generic], alignment: int = 16) -> None:
        page = mmap.PAGESIZE
        pages = -(-(values.nbytes + alignment) // page) + 1
        self.memory = mmap.mmap(-1, pages * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        last = ctypes.c_void_p(base + (pages - 1) * page)
        assert ctypes.CDLL(None).mprotect(last, ctypes.c_size_t(page), 0) == 0
        start = ((pages - 1) * page - values.nbytes) // alignment * alignment
        start -= 0 if start & alignment else alignment
        self.address = base + start
        room = np.frombuffer(self.memory, values.dtype, values.size, start)
        self.array = room.reshape(values.shape)
        self.array[...] = values


class EmulatedGpu:
    """The operators, as `library` has them; arrays lie in guarded memory.

    Args:
        library: what `compile_kernels` made.
        seed: what the order of threads follows from.
        alignment: of all arrays, in bytes, where their elements need no more: 16 are less than ONNX
            Runtime's own arrays have, 1 is what those have that a caller binds.

    Attributes:
        path: the way of linears, of `PATHS`, where they can take it; "" for the one that is chosen.
        taken: that of the last linear.
        arch: the compute capability that the choice depends on.
    """

    def __init__(self, library: Path, seed: int = 1, alignment: int = 16) -> None:
        self.library = ctypes.CDLL(str(library))
        self.seed = seed
        self.alignment = alignment
        self.path = ""
        self.arch = 80
        self.taken = ""

    def _place(self, values: npt.NDArray[np.generic]) -> Guarded:
        return Guarded(values, max(self.alignment, values.itemsize))

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self.library, name)
        function.restype = ctypes.c_char_p
        taken = [ctypes.c_void_p(a.address) if isinstance(a, Guarded) else a for a in arguments]
        error = function(*taken, ctypes.c_uint32(self.seed))
        if error is not None:
            raise AssertionError(error.decode())

    def quantize(
        self,
        x: FloatArray,
        fmt: FloatFormat,
        group_size: int | None = None,
        *,
        largest: float = 0.0,
        candidates: Sequence[float] = (),
    ) -> tuple[npt.NDArray[np.generic], FloatArray]:
        """`numerics.quantize` or, where `largest` is given, `quantize_static` of x [rows, k]."""
        rows, k = x.shape
        size = min(group_size or k, k)
        q = self._place(np.full(x.shape, 77, fmt.integer_type))
        scale = self._place(np.full((rows, -(-k // size)), 77, np.float32))
        all_candidates = [float(fmt.max_integer), *candidates]
        self._call(
            "fp4dit_test_quantize",
            fmt.name.encode(),
            *map(ctypes.c_size_t, (rows, k, size)),
            ctypes.c_float(largest),
            (ctypes.c_float * len(all_candidates))(*all_candidates),
            ctypes.c_size_t(len(all_candidates)),
            self._place(x),
            q,
            scale,
        )
        return q.array.copy(), scale.array.copy()

    def linear(
        self,
        q: npt.NDArray[np.generic],
        scale: FloatArray,
        codes: npt.NDArray[np.uint8],
        fmt: FloatFormat,
        weight_scale: npt.NDArray[np.floating],
        bias: FloatArray,
        group_size: int,
        *,
        act_group_size: int | None = None,
        multipliers: npt.NDArray[np.uint8] | None = None,
        wide: int | None = None,
    ) -> FloatArray:
        """Products [M, N] of q [M, K], scale [M or 1, J] and codes [N, K] of `fmt`.

        With multipliers [N, G] (0 to 15) it is `numerics.linear_integer`, and weight_scale is [N];
        else `numerics.linear`, and weight_scale is [N, G]. `wide` is that of `numerics.pack`.
        """
        (m, k), n = q.shape, len(codes)
        y = self._place(np.full((m, n), 77, np.float32))
        packed = None if multipliers is None else self._place(numerics.pack(multipliers, 4))
        path = ctypes.c_int(PATHS.index(self.path) if self.path else -1)
        self._call(
            "fp4dit_test_linear",
            fmt.name.encode(),
            *map(ctypes.c_size_t, (n, k, min(group_size, k))),
            self._place(numerics.pack(codes, fmt.storage_bits, wide)),
            self._place(weight_scale),
            ctypes.c_int(weight_scale.dtype == np.float16),
            self._place(bias),
            packed,
            ctypes.c_size_t(act_group_size or LARGEST),
            ctypes.c_size_t(LARGEST if wide is None else wide),
            ctypes.c_int(ACTS.index(q.dtype.type)),
            self._place(q),
            self._place(scale),
            ctypes.c_size_t(0 if len(scale) == 1 else scale.shape[1]),
            ctypes.c_size_t(m),
            y,
            ctypes.c_int(self.arch),
            ctypes.byref(path),
        )
        self.taken = PATHS[path.value]
        return y.array.copy()

    def hadamard(
        self, x: FloatArray, block: int, *, moved: int = 0, shared: int = 4 * 4096
    ) -> FloatArray:
        """`hadamard` of x [rows, k], `block` a power of two up to 1024.

        Args:
            x: what is rotated.
            block: elements of a matrix.
            moved: bytes that the kernel is told of x that it begins too early.
            shared: bytes of shared memory.
        """
        rows, k = x.shape
        parts = -(-k // block)
        given, y = self._place(x), self._place(np.full(x.shape, 77, np.float32))
        words = (given.address - moved, y.address, rows * parts, k, block, parts)
        argument = (ctypes.c_int64 * len(words))(*words)  # HadamardArguments
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        warps = 4
        sizes = map(ctypes.c_uint32, (-(-rows * parts // warps), warps * 32, shared))
        self._call("fp4dit_emulate", b"fp4dit_hadamard", *sizes, parameters)
        return y.array.copy()

    def attention(
        self,
        q: npt.NDArray[np.generic],
        q_scale: FloatArray,
        k: npt.NDArray[np.generic],
        k_scale: FloatArray,
        v: npt.NDArray[np.generic],
        v_scale: FloatArray,
        bias: FloatArray,
        attention_scale: float,
        fmt: FloatFormat,
    ) -> FloatArray:
        """`attention.attention`."""
        batch, queries, heads, size = q.shape
        y = self._place(np.full(q.shape, 77, np.float32))
        self._call(
            "fp4dit_test_attention",
            ctypes.c_int(ACTS.index(q.dtype.type)),
            ctypes.c_size_t(value_group(fmt)),
            *map(ctypes.c_size_t, (batch, queries, k.shape[1], heads, size)),
            *map(self._place, (q, q_scale, k, k_scale, v, v_scale, bias)),
            ctypes.c_int(bias.shape[0] == batch),
            ctypes.c_int(bias.shape[3] == k.shape[1]),
            ctypes.c_float(attention_scale),
            y,
        )
        return y.array.copy()
