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
import sys
from collections.abc import Iterator
from dataclasses import dataclass
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
MOST_BYTES = 1_900_000
"""Of all images, compressed: a wheel grows by less than 2 MB."""


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


def compiled(nvrtc: Nvrtc, sources: list[Path], cache: Path | None) -> list[Image]:
    """All images of `sources`; what `cache` has already is not compiled again."""
    included = headers()
    images = []
    for path in sources:
        text = path.read_text("utf-8")
        for arch, is_ptx in targets():
            target = f"{'compute' if is_ptx else 'sm'}_{arch}"
            parts = (text, *OPTIONS, target, str(VERSION), *included, *included.values())
            kept = cache and cache / hashlib.sha256("\0".join(parts).encode()).hexdigest()
            if kept and kept.is_file():
                code = kept.read_bytes()
            else:
                code = nvrtc.compile(path.name, text, included, target)
                if kept:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_bytes(code)
            images.append(Image(path.stem, arch, is_ptx, code))
    return images


# --- LZ4's block format, which custom_ops/gpu/driver/image.cc reads -------------------------------

SHORTEST, WINDOW, LAST_LITERALS, NO_MATCH = 4, 65535, 5, 12


def _length(value: int) -> bytes:
    """What follows a nibble of 15."""
    return b"" if value < 15 else b"\xff" * ((value - 15) // 255) + bytes([(value - 15) % 255])


def compress(data: bytes) -> bytes:
    """`data` as a block of LZ4: at every place the last occurrence of its first four bytes."""
    made, start, at = bytearray(), 0, 0
    seen: dict[bytes, int] = {}
    while at < len(data) - NO_MATCH:
        key = data[at : at + SHORTEST]
        other = seen.get(key, -WINDOW - 1)
        seen[key] = at
        if at - other > WINDOW:
            at += 1
            continue
        length = SHORTEST
        while (
            at + length < len(data) - LAST_LITERALS and data[other + length] == data[at + length]
        ):
            length += 1
        literals = at - start
        made.append(min(literals, 15) << 4 | min(length - SHORTEST, 15))
        made += _length(literals) + data[start:at] + (at - other).to_bytes(2, "little")
        made += _length(length - SHORTEST)
        for i in range(at + 1, min(at + length, len(data) - SHORTEST)):
            seen[data[i : i + SHORTEST]] = i
        at += length
        start = at
    literals = len(data) - start
    made.append(min(literals, 15) << 4)
    made += _length(literals) + data[start:]
    return bytes(made)


# --- the file -------------------------------------------------------------------------------------


def packed(images: list[Image]) -> tuple[str, bytes]:
    """The table's rows as C++, and the bytes that they point to, a multiple of eight."""
    rows, data = [], bytearray()
    for image in images:
        stored = compress(image.code)
        ptx = "true" if image.is_ptx else "false"
        sizes = f"{len(data)}, {len(stored)}, {len(image.code)}"
        rows.append(f'    {{"{image.file}", {image.arch}, {ptx}, {sizes}}},')
        data += stored
    if len(data) > MOST_BYTES:
        raise BuildError(f"{len(data)} bytes of images: expected at most {MOST_BYTES}")
    data += bytes(-len(data) % 8)
    return "\n".join(rows), bytes(data)


def text_of(images: list[Image]) -> str:
    """What custom_ops/gpu/driver/image.cc includes."""
    rows, data = packed(images)
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
    text = text_of(images)
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
    data = packed(images)[1]
    print(
        f"{OUTPUT.relative_to(ROOT)}: {len(images)} images, {sum(len(i.code) for i in images)} bytes, "
        f"{len(data)} compressed, sha256 {hashlib.sha256(data).hexdigest()}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
