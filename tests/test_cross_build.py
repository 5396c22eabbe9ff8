"""Cross builds: the table of targets, and what is read of a library and said against it."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("lief")
pytest.importorskip("onnxruntime")

import cross_build
import cross_table
from binaries import Binary, read_binary
from cross_build import TARGETS, faults
from cross_table import Outcome, table, verdict
from emulation import CheckError
from packaging.tags import mac_platforms

from fp4dit_onnx.runtime.library import library_path
from fp4dit_onnx.system.shared_objects import file_name

MACOS = TARGETS["aarch64-macos"]
NAMES = frozenset({"RegisterCustomOps", "fp4dit_version"})


def mach_o(path: Path, names: frozenset[str], *, loads: str, oldest: tuple[int, int]) -> Path:
    """A dylib for arm64 of nothing but what says what it is, by Apple's headers."""
    nodes, offset = b"", 2 + sum(len(n) + 3 for n in names)
    edges = b""
    for name in sorted(names):  # a leaf: its size, flags, address, no children
        edges += b"_" + name.encode() + b"\0" + bytes([offset + len(nodes)])
        nodes += bytes([2, 0, 0, 0])
    trie = bytes([0, len(names)]) + edges + nodes

    def dylib(kind: int, name: str) -> bytes:
        text = name.encode().ljust((len(name) // 8 + 1) * 8, b"\0")
        return struct.pack("<6I", kind, 24 + len(text), 24, 0, 0, 0) + text

    def segment(name: bytes, start: int, size: int) -> bytes:
        return struct.pack("<2I16s4Q4I", 0x19, 72, name, start, size, start, size, 1, 1, 0, 0)

    version = oldest[0] << 16 | oldest[1] << 8
    at = 4096
    commands = [
        segment(b"__TEXT", 0, at),
        segment(b"__LINKEDIT", at, len(trie)),
        dylib(0xD, "@rpath/libfp4dit_ops.dylib"),
        dylib(0xC, loads),
        struct.pack("<6I", 0x32, 24, 1, version, version, 0),
        struct.pack("<4I", 0x80000033, 16, at, len(trie)),
    ]
    body = b"".join(commands)
    header = struct.pack("<8I", 0xFEEDFACF, 0x100000C, 0, 6, len(commands), len(body), 0, 0)
    path.write_bytes((header + body).ljust(at, b"\0") + trie)
    return path


def test_a_library_for_macos_is_read(tmp_path: Path) -> None:
    system = "/usr/lib/libSystem.B.dylib"
    found = read_binary(mach_o(tmp_path / "a.dylib", NAMES, loads=system, oldest=(11, 0)))
    assert found == Binary("Mach-O", "aarch64", NAMES, (system,), "macOS 11.0")
    assert faults(MACOS, found) == []
    assert faults(TARGETS["x86_64-macos"], found) == [
        "Mach-O for aarch64: expected Mach-O for x86_64"
    ]


def test_what_is_wrong_with_a_library_is_said(tmp_path: Path) -> None:
    names = frozenset({"fp4dit_version", "_Znwm"})
    found = read_binary(
        mach_o(tmp_path / "a.dylib", names, loads="/usr/lib/libc++.1.dylib", oldest=(14, 0))
    )
    assert faults(MACOS, found) == [
        "exports _Znwm: expected RegisterCustomOps, fp4dit_*",
        "exports no RegisterCustomOps",
        "needs /usr/lib/libc++.1.dylib: expected /usr/lib/libSystem.B.dylib at most",
        "runs from macOS 14.0 on: expected macOS 11.0",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
def test_the_installed_library_is_read() -> None:
    found = read_binary(library_path())
    assert found.container == "ELF"
    assert {"RegisterCustomOps", "fp4dit_isa"} <= found.exports
    assert "libc.so.6" in found.needed
    assert found.oldest.startswith("glibc 2.")
    musl = replace(TARGETS["x86_64-musl"], name=f"{found.machine}-musl")
    assert faults(musl, found)[-1].startswith("runs from glibc 2.")


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"no library")
    for name in ("a.so", "absent.so"):
        with pytest.raises(ValueError, match=rf"{name} is no shared library"):
            read_binary(tmp_path / name)


def test_every_target_is_one_that_pip_and_the_package_know() -> None:
    systems = {"PE": "win32", "Mach-O": "darwin", "ELF": "linux"}
    arm, intel = (set(mac_platforms((14, 0), arch)) for arch in ("arm64", "x86_64"))
    others = {"win_amd64", "win_arm64", "musllinux_1_2_x86_64", "musllinux_1_2_aarch64"}
    assert {t.tag for t in TARGETS.values()} - {""} <= arm | intel | others
    for name, target in TARGETS.items():
        assert name == target.name
        assert target.file == file_name("fp4dit_ops", systems[target.container])
        assert target.zig.startswith(f"{target.machine}-")


def test_a_program_of_another_system_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckError, match="nothing here runs programs of aarch64-macos"):
        cross_build.runner(MACOS)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CheckError, match="wine not found: install Debian's wine64"):
        cross_build.runner(TARGETS["x86_64-windows"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckError, match=r"ziglang is not installed: pip install"):
        cross_build.zig()


def test_rows_say_what_ran() -> None:
    windows = TARGETS["x86_64-windows"]
    rows = {
        "not built: no headers": Outcome(windows, problem="no headers"),
        "fails: exit code 1": Outcome(windows, "400 kB", problem="exit code 1"),
        "built, not run": Outcome(windows, "400 kB"),
        "runs (wine)": Outcome(windows, "400 kB", "9 checks, 0 failures"),
    }
    for wanted, row in rows.items():
        assert verdict(row) == wanted
        assert table([row]).endswith(f"| {wanted} |")


def test_the_page_has_a_row_for_every_target() -> None:
    page = cross_table.TABLE.read()
    assert [name for name in TARGETS if f"| {name} | " not in page] == []


def test_a_build_that_fails_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str:
        raise CheckError("no such header")

    assert not cross_build.holds("x library", broken)
    assert cross_build.holds("y library", lambda: "fine")
    assert (
        capsys.readouterr().out == "FAILED  x library: no such header\nok      y library: fine\n"
    )
