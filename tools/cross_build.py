"""Build the custom-op library for other systems by PyPI's ziglang, and look at what was built.

    python tools/cross_build.py                                      # the targets
    python tools/cross_build.py x86_64-windows aarch64-macos         # the library, inspected
    python tools/cross_build.py x86_64-windows --tests --example     # and run where this machine can
    python tools/cross_build.py all --wheel                          # dist/: a wheel for each

Builds are kept in build/cross/TARGET. The package brings clang, and the C and C++ libraries of
every target as sources: the first tests or example of a target take minutes. Each library must be
of the target's format and processor, must export what custom_ops/abi/exports.map names and nothing
else, and load the system's libraries only. Tests run under wine or musl's loader.

Exit codes: 0 all hold, 1 one does not.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from binaries import Binary, read_binary
from emulation import ROOT, SOURCE, CheckError, call

__all__ = ["TARGETS", "Target", "build", "faults", "library", "runner"]

TOOLCHAIN = SOURCE / "toolchains" / "zig.cmake"
FOLDER = ROOT / "build" / "cross"
LIMIT_S = 3600
"""Of a build: the first one compiles C++'s library too."""
_WINDOWS = ("kernel32.dll", "api-ms-win-crt-*.dll")
_MACOS = ("/usr/lib/libSystem.B.dylib",)
_LINKERS = {"_mh_dylib_header", "__dso_handle"}
"""What zig's linker exports of every dylib, of itself."""
_LINUX = ("libc.so", "libm.so", "libdl.so")
_ANDROID = ("libfp4dit_ops.so", "", _LINUX)


@dataclass(frozen=True)
class Target:
    """A system and a processor.

    Attributes:
        name: on the command line.
        zig: the same for zig, with the oldest system that the library shall run on.
        system: CMake's name of it.
        tag: a wheel's platform; empty: there are no wheels for it.
        container: the library's format.
        file: its name.
        oldest: the system that it must run on.
        may_need: patterns of the libraries that it may load.
        emulator: runs a program of it here, on an x86-64 Linux; empty: nothing does.
        package: Debian's package with that.
    """

    name: str
    zig: str
    system: str
    tag: str
    container: str
    file: str
    oldest: str
    may_need: tuple[str, ...]
    emulator: tuple[str, ...] = ()
    package: str = ""

    @property
    def machine(self) -> str:
        """The processor."""
        return self.name.split("-")[0]

    @property
    def folder(self) -> Path:
        """Where it is built."""
        return FOLDER / self.name


def _windows(machine: str, tag: str, *runs: str) -> Target:
    zig = f"{machine}-windows-gnu"
    rest = ("Windows", tag, "PE", "fp4dit_ops.dll", "Windows 6.0", _WINDOWS, runs, "wine64")
    return Target(f"{machine}-windows", zig, *rest)


def _macos(machine: str, tag: str) -> Target:
    rest = ("Darwin", tag, "Mach-O", "libfp4dit_ops.dylib", "macOS 11.0", _MACOS)
    return Target(f"{machine}-macos", f"{machine}-macos.11.0-none", *rest)


def _musl(machine: str, *runs: str, package: str = "") -> Target:
    rest = (
        "Linux",
        f"musllinux_1_2_{machine}",
        "ELF",
        "libfp4dit_ops.so",
        "",
        _LINUX,
        runs,
        package,
    )
    return Target(f"{machine}-musl", f"{machine}-linux-musl", *rest)


TARGETS = {
    target.name: target
    for target in (
        _windows("x86_64", "win_amd64", "wine"),
        _windows("aarch64", "win_arm64"),
        _macos("x86_64", "macosx_11_0_x86_64"),
        _macos("aarch64", "macosx_11_0_arm64"),
        _musl("x86_64", "/lib/ld-musl-x86_64.so.1", package="musl"),
        _musl("aarch64"),
        Target("aarch64-android", "aarch64-linux-android", "Linux", "", "ELF", *_ANDROID),
    )
}
"""Android's C library is not in ziglang 0.17: tools/cross_table.py asks each version anew."""


def zig() -> Path:
    """The compiler.

    Raises:
        CheckError: the package is not installed.
    """
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        raise CheckError("ziglang is not installed: pip install .[cross]")
    return Path(spec.submodule_search_locations[0]) / "zig"


def environment() -> dict[str, str]:
    """What builds have in their environment: this Python's programs, and one cache for all of them."""
    programs = str(Path(sys.executable).parent)
    cache = os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(FOLDER / "zig"))
    return {
        "PATH": programs + os.pathsep + os.environ.get("PATH", ""),
        "ZIG_GLOBAL_CACHE_DIR": cache,
        "ZIG_LOCAL_CACHE_DIR": cache,
    }


def cmake_options(target: Target) -> list[str]:
    """What CMake is told of a target."""
    return [
        f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}",
        f"-DCMAKE_SYSTEM_NAME={target.system}",
        f"-DFP4DIT_ZIG={zig()}",
        f"-DFP4DIT_ZIG_TARGET={target.zig}",
    ]


def build(
    source: Path, folder: Path, target: Target, *names: str, options: Sequence[str] = ()
) -> Path:
    """Build CMake targets `names` of a folder of sources, warnings being errors; the build folder."""
    given = [*cmake_options(target), "-DFP4DIT_WERROR=ON", *options]
    call(["cmake", "-G", "Ninja", "-S", source, "-B", folder, *given], environment())
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    words: list[str | Path] = ["cmake", "--build", folder, "--parallel", jobs, "--target", *names]
    call(words, environment(), LIMIT_S)
    return folder


def library(target: Target) -> Path:
    """The library, built."""
    return build(SOURCE, target.folder / "library", target, "fp4dit_ops") / target.file


def exports() -> frozenset[str]:
    """Patterns of the names that the library exports."""
    text = (SOURCE / "abi" / "exports.map").read_text(encoding="utf-8")
    listed = text.split("global:")[1].split("local:")[0]
    return frozenset(re.findall(r"[\w*]+", listed))


def faults(target: Target, found: Binary) -> list[str]:
    """What is wrong with a library of a target; nothing where all is right."""
    wrong = []
    if (found.container, found.machine) != (target.container, target.machine):
        wrong.append(
            f"{found.container} for {found.machine}: expected {target.container} for {target.machine}"
        )
    wanted = exports()
    named = found.exports - _LINKERS
    strange = {n for n in named if not any(fnmatch.fnmatch(n, p) for p in wanted)}
    if strange:
        wrong.append(f"exports {', '.join(sorted(strange))}: expected {', '.join(sorted(wanted))}")
    wrong += [f"exports no {p}" for p in sorted(wanted) if not fnmatch.filter(found.exports, p)]
    own = {
        n
        for n in found.needed
        if not any(fnmatch.fnmatch(n.lower(), p.lower()) for p in target.may_need)
    }
    if own:
        wrong.append(
            f"needs {', '.join(sorted(own))}: expected {', '.join(target.may_need)} at most"
        )
    if found.oldest != target.oldest:
        expected = target.oldest or "no version of glibc"
        wrong.append(f"runs from {found.oldest or 'an unknown system'} on: expected {expected}")
    return wrong


def inspected(target: Target, path: Path) -> str:
    """What the library is, in a line.

    Raises:
        CheckError: it is not what the target says.
    """
    found = read_binary(path)
    if wrong := faults(target, found):
        raise CheckError(f"{path.name}: {'; '.join(wrong)}")
    needs = ", ".join(found.needed) or "nothing"
    return (
        f"{found.container}, {found.machine}, {found.oldest or 'no version'}, {len(found.exports)} "
        f"exports, {path.stat().st_size:,} bytes, needs {needs}"
    )


def runner(target: Target) -> list[str]:
    """The words before a program of the target that run it here.

    Raises:
        CheckError: nothing does.
    """
    if not target.emulator:
        raise CheckError(f"nothing here runs programs of {target.name}")
    if shutil.which(target.emulator[0]) is None:
        raise CheckError(f"{target.emulator[0]} not found: install Debian's {target.package}")
    return list(target.emulator)


def tests(target: Target) -> str:
    """The C++ tests, built, and run where this machine can; what they said, in a line."""
    names = ("fp4dit_tests", "fp4dit_run_model")
    options = ["-DFP4DIT_BUILD_TESTS=ON"]
    folder = build(SOURCE, target.folder / "library", target, *names, options=options)
    if not target.emulator:
        return "built, not run"
    said = call([*runner(target), program(folder / "tests", names[0])], quiet())
    sets = re.findall(r"^(\w+): ran\s*$", said, re.MULTILINE)
    checks = re.search(r"(\d+) checks, 0 failures", said)
    if checks is None:
        raise CheckError(f"no count of checks in: {said[-500:]}")
    return f"{', '.join(sets)}: {int(checks[1]):,} checks, 0 failures, under {target.emulator[0]}"


def program(folder: Path, name: str) -> Path:
    """A program that was built in a folder, with or without Windows' ending."""
    return next(p for p in (folder / name, folder / f"{name}.exe") if p.is_file())


def quiet() -> dict[str, str]:
    """Wine's environment: no messages of its own, no window that waits for a click."""
    prefix = os.environ.get("WINEPREFIX", str(FOLDER / "wine"))
    return {"WINEDEBUG": "-all", "WINEPREFIX": prefix, "WINEDLLOVERRIDES": "mscoree,mshtml="}


def example(target: Target) -> Path:
    """examples/cpp's program, built."""
    import nlohmann_json

    include = f"-DNLOHMANN_JSON_INCLUDE={nlohmann_json.get_include()}"
    folder = target.folder / "example"
    build(ROOT / "examples" / "cpp", folder, target, "text_to_image", options=[include])
    return program(folder, "text_to_image")


def wheel(target: Target, dist: Path) -> Path:
    """A wheel of the package with this library, which is built where `library` built it."""
    fresh = target.folder / "wheel"
    shutil.rmtree(fresh, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    only: list[str | Path] = ["--no-deps", "--no-build-isolation", "--wheel-dir", fresh]
    settings = [f"-Cwheel.tags=py3-none-{target.tag}", f"-Cbuild-dir={target.folder / 'library'}"]
    options = {"CMAKE_ARGS": " ".join(cmake_options(target)), "CMAKE_GENERATOR": "Ninja"}
    call([*pip, *only, *settings, ROOT], {**environment(), **options}, LIMIT_S)
    (made,) = fresh.glob("*.whl")
    dist.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(made, dist / made.name))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, "all"], metavar="TARGET")
    parser.add_argument("--tests", action="store_true", help="the C++ tests too")
    parser.add_argument("--example", action="store_true", help="examples/cpp too")
    parser.add_argument("--wheel", action="store_true", help="a wheel too, in dist/")
    given = parser.parse_args(arguments)
    if "all" in given.targets:
        given.targets = [name for name, target in TARGETS.items() if target.tag]
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see the module's text for the exit codes."""
    given = parse(arguments)
    for target in () if given.targets else TARGETS.values():
        print(f"{target.name:16}  {target.zig:26}  {target.tag}")
    results = [
        holds(f"{name} {part}", partial(run, TARGETS[name]))
        for name in given.targets
        for part, run in parts(given).items()
    ]
    return 0 if all(results) else 1


def parts(given: argparse.Namespace) -> dict[str, Callable[[Target], str]]:
    """What is made of each target: a line of each part, or CheckError."""
    chosen: dict[str, Callable[[Target], str]] = {"library": lambda t: inspected(t, library(t))}
    if given.tests:
        chosen["tests"] = tests
    if given.example:
        chosen["example"] = lambda t: f"{example(t).name} built"
    if given.wheel:
        chosen["wheel"] = lambda t: wheel(t, ROOT / "dist").name
    return chosen


def holds(name: str, run: Callable[[], str]) -> bool:
    """One check, in a line: `run` returns what was found, or raises."""
    try:
        print(f"ok      {name}: {run()}", flush=True)
    except (CheckError, ValueError) as error:
        print(f"FAILED  {name}: {error}", flush=True)
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
