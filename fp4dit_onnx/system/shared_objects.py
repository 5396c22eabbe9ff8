"""Shared libraries: what their files are called, which others they need, which of those are not here."""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["file_name", "loads", "missing", "needed", "versioned_name"]

_FILES = {"win32": "{}.dll", "darwin": "lib{}.dylib"}
_VERSIONED = {"win32": "{}64_{}.dll", "darwin": "lib{}.{}.dylib"}

_ELF64_LITTLE = b"\x7fELF\x02\x01"
_HEADERS, _HEADER = "<Q14xHH", "<IIQQQQQQ"
"""Of e_phoff, e_phentsize and e_phnum; of a program header."""
_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRINGS = 1, 5


def file_name(name: str, system: str = sys.platform) -> str:
    """The file of a library on a system, as in libfp4dit_ops.so of fp4dit_ops."""
    return _FILES.get(system, "lib{}.so").format(name)


def versioned_name(name: str, version: int, system: str = sys.platform) -> str:
    """The same of one of several versions, as CUDA's are called: libcudart.so.12, cudart64_12.dll."""
    return _VERSIONED.get(system, "lib{}.so.{}").format(name, version)


def needed(path: Path) -> list[str]:
    """Names of the libraries that an ELF file (64 bits, little-endian) asks for; none of others."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:6] != _ELF64_LITTLE:
            return []
        return list(_needed(data))


def _needed(data: mmap.mmap) -> Iterator[str]:
    start, size, count = struct.unpack_from(_HEADERS, data, 32)
    headers = [struct.unpack_from(_HEADER, data, start + i * size) for i in range(count)]
    (dynamic,) = (h for h in headers if h[0] == _DYNAMIC)
    entries = list(struct.iter_unpack("<QQ", data[dynamic[2] : dynamic[2] + dynamic[5]]))
    address = next(value for tag, value in entries if tag == _STRINGS)
    segment = next(h for h in headers if h[0] == _LOAD and 0 <= address - h[3] < h[5])
    strings = address - segment[3] + segment[2]
    for tag, value in entries:
        if tag == _NEEDED:
            begin = strings + value
            yield data[begin : data.find(b"\0", begin)].decode()


def loads(name: str) -> bool:
    """Whether a library can be loaded into this process by its name."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def missing(path: Path) -> list[str]:
    """Those of `needed` that cannot be loaded by name."""
    return [name for name in needed(path) if not loads(name)]
