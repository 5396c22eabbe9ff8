"""What a shared library is, by its file: of which processor and system, what it gives and takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lief

__all__ = ["Binary", "read_binary"]

_MACHINES = {
    "X86_64": "x86_64",
    "AMD64": "x86_64",
    "AARCH64": "aarch64",
    "ARM64": "aarch64",
}


@dataclass(frozen=True)
class Binary:
    """A shared library.

    Attributes:
        container: ELF, PE or Mach-O.
        machine: processor, as in a target's name.
        exports: names of what others can call.
        needed: names of the libraries that it loads, in its order.
        oldest: the oldest system that it says it runs on; empty if it says nothing.
    """

    container: str
    machine: str
    exports: frozenset[str]
    needed: tuple[str, ...]
    oldest: str


def read_binary(path: Path) -> Binary:
    """The shared library in a file.

    Raises:
        ValueError: it is none of the three kinds, of a processor not known here, or of several.
    """
    lief.logging.disable()
    parsed = lief.parse(str(path)) if path.is_file() else None
    if isinstance(parsed, lief.ELF.Binary):
        return _elf(parsed)
    if isinstance(parsed, lief.PE.Binary):
        return _pe(parsed)
    if isinstance(parsed, lief.MachO.Binary):
        return _macho(parsed)
    raise ValueError(f"{path} is no shared library: expected an ELF, PE or Mach-O file")


def _machine(name: str) -> str:
    if name not in _MACHINES:
        raise ValueError(f"processor {name}: expected one of {', '.join(_MACHINES)}")
    return _MACHINES[name]


def _elf(parsed: lief.ELF.Binary) -> Binary:
    names = [
        str(symbol.name)
        for library in parsed.symbols_version_requirement
        for symbol in library.get_auxiliary_symbols()
    ]
    versions = [name.removeprefix("GLIBC_") for name in names if name.startswith("GLIBC_")]
    newest = max(versions, key=lambda text: [int(n) for n in text.split(".")], default="")
    return Binary(
        "ELF",
        _machine(parsed.header.machine_type.name),
        frozenset(str(symbol.name) for symbol in parsed.exported_symbols),
        tuple(str(name) for name in parsed.libraries),
        f"glibc {newest}" if newest else "",
    )


def _pe(parsed: lief.PE.Binary) -> Binary:
    header, table = parsed.optional_header, parsed.get_export()
    return Binary(
        "PE",
        _machine(parsed.header.machine.name),
        frozenset(str(entry.name) for entry in table.entries) if table else frozenset(),
        tuple(str(item.name) for item in parsed.imports),
        f"Windows {header.major_subsystem_version}.{header.minor_subsystem_version}",
    )


def _macho(parsed: lief.MachO.Binary) -> Binary:
    build = parsed.build_version
    oldest = ".".join(str(n) for n in build.minos[:2]) if build else ""
    own = parsed.get(lief.MachO.LoadCommand.TYPE.ID_DYLIB)
    table = parsed.dyld_exports_trie or parsed.dyld_info  # linkers write one or the other
    exported = [entry.symbol for entry in table.exports] if table else []
    return Binary(
        "Mach-O",
        _machine(parsed.header.cpu_type.name),
        frozenset(str(symbol.name).removeprefix("_") for symbol in exported if symbol),
        tuple(str(item.name) for item in parsed.libraries if item != own),
        f"macOS {oldest}" if oldest else "",
    )
