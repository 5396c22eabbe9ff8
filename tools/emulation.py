"""What running a bundle on another processor takes: builds, qemu, and sessions inside it."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

__all__ = [
    "AARCH64_CPUS",
    "OLD_X86_CPU",
    "Build",
    "CheckError",
    "EmulatedSession",
    "Machine",
    "aarch64_runtime",
    "build",
    "missing_tools",
    "windows_runtime",
    "x86_runtime",
]

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "custom_ops"
TOOLCHAIN = SOURCE / "toolchains" / "aarch64-linux-gnu.cmake"
CROSS_LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")
AARCH64_CPUS = {"cortex-a53": "neon", "neoverse-n1": "neon_dotprod", "max": "neon_i8mm"}
"""qemu's processor -> the best instruction set that the library must find on it."""
OLD_X86_CPU = "Nehalem"
"""Of 2008: x86-64 without AVX."""
PACKAGES = {
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "qemu-aarch64": "qemu-user",
    "qemu-x86_64": "qemu-user",
    "cmake": "cmake",
    "c++": "g++",
}
WHEEL_TAGS = tuple(f"manylinux_2_{n}_aarch64" for n in (17, 27, 28, 34))
LIMIT_S = 600
"""Of a command or a run of a model: the longest takes a minute."""
CPUINFO = """\
processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd03
CPU revision\t: 4

"""


class CheckError(Exception):
    """Something could not be built, run or found; the text is for the user."""


def missing_tools(names: Iterable[str]) -> list[str]:
    """A line for each of these programs that is not installed, with Debian's package."""
    absent = [name for name in names if shutil.which(name) is None]
    return [f"{name} not found: install Debian's {PACKAGES[name]}" for name in absent]


def call(
    command: Sequence[str | Path], env: Mapping[str, str] | None = None, limit_s: int = LIMIT_S
) -> str:
    """Output of a command that must succeed.

    Raises:
        CheckError: it did not; carries the last lines of what it printed.
    """
    words = [str(word) for word in command]
    environment = {**os.environ, **(env or {})}
    try:
        result = subprocess.run(
            words, env=environment, capture_output=True, text=True, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired as error:
        raise CheckError(f"no end after {limit_s} s: {' '.join(words)}") from error
    if result.returncode != 0:
        tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-12:])
        raise CheckError(f"exit code {result.returncode}: {' '.join(words)}\n{tail}")
    return result.stdout


@dataclass(frozen=True)
class Build:
    """What was built for one architecture.

    Attributes:
        folder: CMake's.
    """

    folder: Path

    @property
    def library(self) -> Path:
        """The custom-op library."""
        return self.folder / "libfp4dit_ops.so"

    @property
    def tests(self) -> Path:
        """The C++ suite."""
        return self.folder / "tests" / "fp4dit_tests"

    @property
    def runner(self) -> Path:
        """The program that runs a model."""
        return self.folder / "tests" / "fp4dit_run_model"


def build(folder: Path, *, cross: bool, jobs: int, sanitize: bool = False) -> Build:
    """Build the library, its tests and the runner, warnings being errors.

    Args:
        folder: where to.
        cross: for aarch64, else for this machine.
        jobs: compilers at a time.
        sanitize: with address and undefined-behaviour sanitizers.
    """
    options = ["-DFP4DIT_BUILD_TESTS=ON", "-DFP4DIT_WERROR=ON"]
    if sanitize:
        options += ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -g1"]
        options += ["-DFP4DIT_SANITIZE=address,undefined"]
    toolchain = ["--toolchain", str(TOOLCHAIN)] if cross else []
    call(["cmake", *toolchain, "-S", SOURCE, "-B", folder, *options])
    targets = ["fp4dit_ops", "fp4dit_tests", "fp4dit_run_model"]
    call(["cmake", "--build", folder, "--parallel", str(jobs), "--target", *targets])
    return Build(folder)


@dataclass(frozen=True)
class Machine:
    """A processor that qemu stands in for, and what was built for it.

    Attributes:
        cpu: qemu's name of it.
        best: the instruction set that the library must choose there.
        emulator: the command that runs a program on it.
        build: programs and library.
    """

    cpu: str
    best: str
    emulator: tuple[str, ...]
    build: Build

    @classmethod
    def aarch64(cls, cpu: str, built: Build, work: Path) -> Machine:
        """One of `AARCH64_CPUS`."""
        prefix = str(_aarch64_prefix(work))
        return cls(cpu, AARCH64_CPUS[cpu], ("qemu-aarch64", "-cpu", cpu, "-L", prefix), built)

    @classmethod
    def old_x86(cls, built: Build) -> Machine:
        """`OLD_X86_CPU`."""
        return cls(OLD_X86_CPU, "scalar", ("qemu-x86_64", "-cpu", OLD_X86_CPU), built)

    def suite(self) -> str:
        """Run the C++ suite: what it covered, in a line.

        Raises:
            CheckError: it failed, or the processor's best instruction set is another one.
        """
        leaks = {"ASAN_OPTIONS": "detect_leaks=0"}  # finding them takes ptrace, which qemu lacks
        output = call([*self.emulator, self.build.tests, self.best], leaks)
        ran = re.findall(r"^(\w+): ran$", output, re.MULTILINE)
        if ran[:1] != [self.best]:
            raise CheckError(f"{self.cpu}: ran {', '.join(ran)}; expected {self.best} first")
        checks = re.search(r"(\d+) checks, 0 failures", output)
        if checks is None:
            raise CheckError(f"{self.cpu}: no count of checks in: {output}")
        return f"{', '.join(ran)}: {int(checks[1]):,} checks, 0 failures"


def _aarch64_prefix(work: Path) -> Path:
    """Folder whose files qemu shows in place of the machine's own.

    In /proc/cpuinfo programs would find the x86 processor; ONNX Runtime looks there for an ARM one
    and crashes without.
    """
    prefix = work / "aarch64-prefix"
    (prefix / "proc").mkdir(parents=True, exist_ok=True)
    (prefix / "proc" / "cpuinfo").write_text(CPUINFO)
    if not (prefix / "lib").exists():
        (prefix / "lib").symlink_to(CROSS_LIBRARIES)
    return prefix


def x86_runtime() -> Path:
    """The installed ONNX Runtime's shared library."""
    package = importlib.metadata.distribution("onnxruntime")
    return _first(Path(str(package.locate_file("onnxruntime/capi"))), "libonnxruntime.so*")


def aarch64_runtime(work: Path) -> Path:
    """libonnxruntime.so for aarch64, of the installed version, from the package index's wheel."""
    return _from_wheel(work, "libonnxruntime.so*", WHEEL_TAGS)


def windows_runtime(work: Path) -> Path:
    """onnxruntime.dll for x86-64, likewise."""
    return _from_wheel(work, "onnxruntime*.dll", ("win_amd64",))


def _from_wheel(work: Path, pattern: str, platforms: Sequence[str]) -> Path:
    """The first of the files of a name in the installed ONNX Runtime's wheel for another platform."""
    version = importlib.metadata.version("onnxruntime")
    folder = work / f"onnxruntime-{version}-{platforms[0]}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            tags = [word for tag in platforms for word in ("--platform", tag)]
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
            only = ["--quiet", "--no-deps", "--only-binary=:all:", *tags, "--dest", scratch]
            call([*pip, *only, f"onnxruntime=={version}"])
            wheel = next(Path(scratch).glob("onnxruntime-*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                names = fnmatch.filter(archive.namelist(), f"onnxruntime/capi/{pattern}")
                archive.extractall(Path(scratch) / "wheel", names)
            (Path(scratch) / "wheel" / "onnxruntime" / "capi").rename(folder)
    return _first(folder, pattern)


def _first(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise CheckError(f"{folder} has no {pattern}: expected it in the wheel")
    return found[0]


@dataclass(frozen=True)
class _Input:
    name: str
    shape: list[int | str]


class EmulatedSession:
    """A model in ONNX Runtime inside qemu, as a `fp4dit_onnx.Pipeline` takes sessions.

    Args:
        machine: runs it.
        runtime: libonnxruntime.so for it.
        model: the ONNX file.
        library: whether the custom-op library is registered.
        folder: for tensors on their way; is created.

    Attributes:
        isa: the instruction set that the library chose, empty without it.
        counters: the library's counts of kernel calls, once it is closed.
    """

    def __init__(
        self, machine: Machine, runtime: Path, model: Path, *, library: bool, folder: Path
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._inputs = _declared(model)
        self.counters: dict[str, int] = {}
        options = ["--library", machine.build.library] if library else []
        words = [*machine.emulator, machine.build.runner, *options, runtime, model]
        self._process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = self._until("ready")
        self.isa = next((line[4:] for line in said if line.startswith("isa ")), "")
        names = [line.split(" ", 2)[2] for line in said if line.startswith("input ")]
        self._outputs = [line.split(" ", 2)[2] for line in said if line.startswith("output ")]
        if names != [item.name for item in self._inputs]:
            raise CheckError(f"{model}: the runtime names other inputs than the file: {names}")

    def get_inputs(self) -> Sequence[Any]:
        """Name and shape of each input."""
        return self._inputs

    def get_outputs(self) -> Sequence[Any]:
        """Name of each output."""
        return [SimpleNamespace(name=name) for name in self._outputs]

    def run(
        self, outputs: Sequence[str] | None, feed: Mapping[str, Any]
    ) -> list[npt.NDArray[Any]]:
        """All outputs in the model's order, or those named."""
        for index, item in enumerate(self._inputs):
            array = np.ascontiguousarray(feed[item.name]).reshape(np.shape(feed[item.name]))
            np.save(self._folder / f"input_{index}.npy", array)
        self._say(f"{self._folder}\n")
        self._until("done")
        wanted = self._outputs if outputs is None else outputs
        indices = [self._outputs.index(name) for name in wanted]
        return [np.load(self._folder / f"output_{index}.npy") for index in indices]

    def close(self) -> None:
        """End the process, and read the library's counts of kernel calls."""
        if self._process.returncode is not None:
            return
        rest, _ = self._process.communicate()
        if found := re.search(r"^counters (.*)$", rest, re.MULTILINE):
            self.counters = json.loads(found[1])

    def _say(self, text: str) -> None:
        if self._process.stdin is not None:
            try:
                self._process.stdin.write(text)
                self._process.stdin.flush()
            except BrokenPipeError:
                pass  # why it ended is read below

    def _until(self, last: str) -> list[str]:
        lines: list[str] = []
        limit = threading.Timer(LIMIT_S, self._process.kill)
        limit.start()
        try:
            for line in self._process.stdout or ():
                lines.append(line.rstrip("\n"))
                if lines[-1] == last:
                    return lines
            code = self._process.wait()
        finally:
            limit.cancel()
        raise CheckError(f"the runner ended with {code}: {lines[-1] if lines else 'no word'}")


def _declared(model: Path) -> list[_Input]:
    graph = onnx.load(str(model), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [
        _Input(i.name, [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim])
        for i in graph.input
        if i.name not in weights
    ]
