#!/usr/bin/env python3
"""Compile custom_ops/gpu/kernels/*.cu to custom_ops/gpu/driver/images.inc, which the library embeds.

NVRTC 12.9 compiles, of the Python package nvidia-cuda-nvrtc-cu12: neither CUDA nor a GPU is needed.
Each file becomes machine code for every GPU of `MACHINES` and PTX for later ones, compressed. The
same sources give the same bytes, on any machine; what has been compiled once is kept in build/gpu.
``--verify LIBRARY`` compiles anew and says whether the library holds exactly that.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import itertools
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "custom_ops"
KERNELS = SOURCES / "gpu" / "kernels"
OUTPUT = SOURCES / "gpu" / "driver" / "images.inc"
CACHE = ROOT / "build" / "gpu"

VERSION = (12, 9)
"""Of NVRTC: the first major version for sm_75, the first minor one that has sm_120."""
PACKAGE = "nvidia-cuda-nvrtc-cu12"
MACHINES = (75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities with machine code of their own; later ones of the same major version run it."""
PTX = 80
"""The capability whose PTX the driver compiles for GPUs that are newer than all of these."""
OPTIONS = ("--std=c++17", "--fmad=false")
"""No contraction: the bits are those of the CPU's kernels, and every fma is written out."""
MOST_BYTES = 1_400_000
"""Of all images in a wheel: with the page's WebGPU it grows by less than 2 MB."""
COMPRESSION = {
    "id": lzma.FILTER_LZMA1,
    "preset": 9 | lzma.PRESET_EXTREME,
    "dict_size": 1 << 24,
    "lc": 3,
    "lp": 0,
    "pb": 2,
}


class BuildError(Exception):
    """What is wrong, and what to do."""


@dataclass(frozen=True)
class Image:
    """One file of kernels for one kind of GPU."""

    file: str
    arch: int
    is_ptx: bool
    code: bytes


class Nvrtc:
    """NVIDIA's run-time compiler.

    Args:
        library: its file; by default that of the installed Python package.

    Raises:
        BuildError: it is absent, or of another version.
    """

    def __init__(self, library: Path | None = None) -> None:
        try:
            self._library = ctypes.CDLL(str(library or _installed()))
        except OSError as error:
            raise BuildError(f"NVRTC cannot be loaded ({error}): {_CURE}") from error
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        if (major.value, minor.value) != VERSION:
            raise BuildError(f"NVRTC is {major.value}.{minor.value}: {_CURE}")

    def _call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != 0:
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise BuildError(f"{name}: {self._library.nvrtcGetErrorString(result).decode()}")

    def _text(self, program: ctypes.c_void_p, name: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{name}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(name, program, buffer)
        return buffer.raw

    def compile(self, name: str, source: str, headers: dict[str, str], target: str) -> bytes:
        """Machine code (``sm_80``) or PTX (``compute_80``) of one source.

        Args:
            name: what messages call it.
            source: its text.
            headers: the texts that it may include, by the name in the include.
            target: the GPU.

        Raises:
            BuildError: it does not compile; the message has the compiler's.
        """
        texts = [text.encode() for text in headers.values()]
        names = [header.encode() for header in headers]
        many = ctypes.c_char_p * len(headers)
        program = ctypes.c_void_p()
        given = (source.encode(), name.encode(), len(headers), many(*texts), many(*names))
        self._call("nvrtcCreateProgram", ctypes.byref(program), *given)
        options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={target}")]
        try:
            if self._library.nvrtcCompileProgram(
                program, len(options), (ctypes.c_char_p * len(options))(*options)
            ):
                log = self._text(program, "nvrtcGetProgramLog").rstrip(b"\0").decode()
                raise BuildError(f"{name} does not compile for {target}:\n{log}")
            if target.startswith("compute"):
                return self._text(program, "nvrtcGetPTX").rstrip(b"\0")
            return self._text(program, "nvrtcGetCUBIN")
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))


_CURE = f"install it with  pip install '{PACKAGE}=={VERSION[0]}.{VERSION[1]}.*'"


def _installed() -> Path:
    """The file of the installed package."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(folder).glob("cuda_nvrtc/lib/libnvrtc.so.12"))
        if found:
            return found[0]
    raise BuildError(f"there is no NVRTC {VERSION[0]}.{VERSION[1]}: {_CURE}")


def headers() -> dict[str, str]:
    """What kernels may include, by the name in the include."""
    found = sorted([*(SOURCES / "gpu").glob("*.h"), *KERNELS.glob("*.h")])
    return {path.relative_to(SOURCES).as_posix(): path.read_text("utf-8") for path in found}


def targets() -> Iterator[tuple[int, bool]]:
    """Compute capability, and whether it is PTX's."""
    yield from ((arch, False) for arch in MACHINES)
    yield PTX, True


def _kept(cache: Path | None, parts: tuple[str, ...], make: Callable[[], bytes]) -> bytes:
    """What `make` makes of `parts`, or made before."""
    if cache is None:
        return make()
    path = cache / hashlib.sha256("\0".join(parts).encode()).hexdigest()
    if not path.is_file():
        made = make()
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial")
        unfinished.write_bytes(made)
        unfinished.replace(path)
    return path.read_bytes()


def compiled(nvrtc: Nvrtc, sources: list[Path], cache: Path | None) -> list[Image]:
    """All images of `sources`; what `cache` has already is not compiled again."""
    included = headers()
    images = []
    for path in sources:
        text = path.read_text("utf-8")
        for arch, is_ptx in targets():
            target = f"{'compute' if is_ptx else 'sm'}_{arch}"
            parts = (text, *OPTIONS, target, str(VERSION), *included, *included.values())
            make = partial(nvrtc.compile, path.name, text, included, target)
            code = _kept(cache, parts, make)
            images.append(Image(path.stem, arch, is_ptx, code))
    return images


def compress(data: bytes) -> bytes:
    """`data` as custom_ops/gpu/driver/lzma.cc reads it."""
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[COMPRESSION])


# --- the file -------------------------------------------------------------------------------------


def packed(images: list[Image], cache: Path | None = None) -> tuple[str, bytes]:
    """The table's rows as C++, and the bytes that they point to, a multiple of eight.

    Args:
        images: those of one file one after the other; code is compressed together, and so is PTX.
        cache: where compressed ones are kept.

    Raises:
        BuildError: they would make a wheel too large.
    """
    rows, data = [], bytearray()
    for (file, is_ptx), group in itertools.groupby(images, key=lambda i: (i.file, i.is_ptx)):
        members = list(group)
        whole = b"".join(image.code for image in members)
        parts = ("compressed", str(COMPRESSION), hashlib.sha256(whole).hexdigest())
        stored = _kept(cache, parts, partial(compress, whole))
        stream, at = f"{{{len(data)}, {len(stored)}, {len(whole)}}}", 0
        for image in members:
            ptx = "true" if is_ptx else "false"
            size = len(image.code)
            rows.append(f'    {{"{file}", {image.arch}, {ptx}, {stream}, {at}, {size}}},')
            at += size
        data += stored
    data += bytes(-len(data) % 8)
    in_a_wheel = len(zlib.compress(data, 9))
    if in_a_wheel > MOST_BYTES:
        raise BuildError(f"{in_a_wheel} bytes in a wheel: expected at most {MOST_BYTES}")
    return "\n".join(rows), bytes(data)


def text_of(images: list[Image], cache: Path | None = None) -> str:
    """What custom_ops/gpu/driver/embedded_images.cc includes."""
    rows, data = packed(images, cache)
    words = [f"0x{int.from_bytes(data[i : i + 8], 'little'):x}," for i in range(0, len(data), 8)]
    lines = "\n".join(" ".join(words[i : i + 8]) for i in range(0, len(words), 8))
    return (
        f"// Made by tools/build_gpu.py with NVRTC {VERSION[0]}.{VERSION[1]}; sha256 of the images: "
        f"{hashlib.sha256(data).hexdigest()}\n"
        f"constexpr Image kImages[] = {{\n{rows}\n}};\n"
        f"constexpr uint64_t kWords[] = {{\n{lines}\n}};\n"
    )


def holds(library: bytes, images: list[Image]) -> bool:
    """Whether the library's file has these images embedded, byte for byte."""
    return packed(images)[1] in library


def build(output: Path, cache: Path | None = CACHE, library: Path | None = None) -> list[Image]:
    """Write `output` if its text changes; returns the images."""
    images = compiled(Nvrtc(library), sorted(KERNELS.glob("*.cu")), cache)
    text = text_of(images, cache)
    if not output.is_file() or output.read_text("utf-8") != text:
        output.write_text(text, "utf-8")
    return images


def main(arguments: list[str] | None = None) -> int:
    """Build or verify; 0 if that succeeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nvrtc", type=Path, help="libnvrtc.so.12; default: the package's")
    parser.add_argument("--verify", type=Path, metavar="LIBRARY", help="compare, write nothing")
    given = parser.parse_args(arguments)
    try:
        if given.verify:
            images = compiled(Nvrtc(given.nvrtc), sorted(KERNELS.glob("*.cu")), None)
            same = holds(given.verify.read_bytes(), images)
            print(
                f"{given.verify}: {'has' if same else 'does not have'} the kernels of these sources"
            )
            return 0 if same else 1
        images = build(OUTPUT, library=given.nvrtc)
    except (BuildError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    data = packed(images, CACHE)[1]
    print(
        f"{OUTPUT.relative_to(ROOT)}: {len(images)} images, {sum(len(i.code) for i in images)} bytes, "
        f"{len(data)} compressed, {len(zlib.compress(data, 9))} in a wheel, "
        f"sha256 {hashlib.sha256(data).hexdigest()}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
