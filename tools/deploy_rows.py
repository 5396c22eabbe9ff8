"""The runtimes that docs/deploy.md has a row for, and how each generates an image on this machine."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import emulation
from emulation import CheckError, Machine, missing_tools

from fp4dit_onnx.runtime.library import ENVIRONMENT, library_path
from fp4dit_onnx.system.nvidia import Trouble, nvidia_driver

__all__ = ["ROWS", "Command", "NotRunError", "Row", "Stage"]

ROOT = emulation.ROOT
OLDEST = "1.18.1"
"""Of the oldest minor version of ONNX Runtime that the package takes."""
KERNELS, BODIES = "kernels", "function bodies"


class NotRunError(Exception):
    """A row cannot be tried on this machine; the text says why."""


@dataclass(frozen=True)
class Stage:
    """What the rows share.

    Attributes:
        bundle: to generate with.
        work: folder for builds and environments; is kept between runs if the user names it.
        prompt: of the image, with seed 0 and the bundle's settings.
    """

    bundle: Path
    work: Path
    prompt: str

    def picture(self, key: str, suffix: str = ".png") -> Path:
        """Where the row `key` puts its image."""
        return self.work / f"{key}{suffix}"


@dataclass(frozen=True)
class Command:
    """A process that generates an image.

    Attributes:
        words: program and arguments.
        picture: the file that it writes.
        version: of the runtime.
        env: what it needs in the environment.
        emulated: whether its speed means nothing.
    """

    words: tuple[str | Path, ...]
    picture: Path
    version: str
    env: Mapping[str, str] = field(default_factory=dict)
    emulated: bool = False


@dataclass(frozen=True)
class Row:
    """A runtime.

    Attributes:
        key: for ``--only``.
        runtime: its name.
        layers: what runs the quantized layers, `KERNELS` or `BODIES`.
        prepare: builds and installs what it takes; raises NotRunError where something is absent,
            CheckError where something of ours fails.
        exact: whether the image must have every bit of the reference.
    """

    key: str
    runtime: str
    layers: str
    prepare: Callable[[Row, Stage], Command]
    exact: bool = False

    @property
    def library(self) -> bool:
        """Whether the custom-op library is registered."""
        return self.layers == KERNELS


def installed(package: str) -> str:
    """The version of an installed package.

    Raises:
        NotRunError: there is none.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise NotRunError(f"{package} is not installed") from None


def generate(row: Row, stage: Stage, python: Path, version: str, device: str = "cpu") -> Command:
    """``fp4dit-onnx generate`` of this checkout under an interpreter."""
    picture = stage.picture(row.key)
    words = (python, "-P", "-m", "fp4dit_onnx", "generate", stage.bundle, "--prompt", stage.prompt)
    options = ("--output", picture, "--overwrite", "--device", device)
    kernels = "--library" if row.library else "--no-library"
    env = {"PYTHONPATH": str(ROOT), ENVIRONMENT: str(library_path())}
    return Command((*words, *options, kernels), picture, version, env)


def here(row: Row, stage: Stage) -> Command:
    """The installed ONNX Runtime."""
    return generate(row, stage, Path(sys.executable), installed("onnxruntime"))


def in_environment(requirement: str, row: Row, stage: Stage) -> Command:
    """ONNX Runtime of a version in a virtual environment with what the package needs, from PyPI."""
    folder = stage.work / f"venv-{requirement.replace('==', '-')}"
    python = folder / "bin" / "python"
    asked = f"import importlib.metadata as m; print(m.version({requirement.split('==')[0]!r}))"
    if not (folder / "complete").is_file():
        needs = importlib.metadata.requires("fp4dit-onnx") or []
        own = [need for need in needs if "extra ==" not in need]
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        pip += ["--python", python]
        try:
            emulation.call([sys.executable, "-m", "venv", "--clear", "--without-pip", folder])
            emulation.call([*pip, "install", "--quiet", requirement, *own], {"PIP_CONSTRAINT": ""})
        except CheckError as error:
            raise NotRunError(f"{requirement} cannot be installed: {last_line(error)}") from error
        (folder / "complete").touch()
    return generate(row, stage, python, emulation.call([python, "-c", asked]).strip())


def last_line(error: object) -> str:
    """The last line of a text."""
    return (str(error).strip().splitlines() or [""])[-1].strip()


def build_example(folder: Path, *options: str) -> Path:
    """The C++ example, compiled into `folder`.

    Raises:
        NotRunError: nlohmann/json is absent.
        CheckError: it does not compile.
    """
    if importlib.util.find_spec("nlohmann_json") is None:
        raise NotRunError("nlohmann/json is absent: pip install nlohmann-json")
    import nlohmann_json

    include = f"-DNLOHMANN_JSON_INCLUDE={nlohmann_json.get_include()}"
    emulation.call(["cmake", *options, "-S", ROOT / "examples" / "cpp", "-B", folder, include])
    emulation.call(["cmake", "--build", folder, "--target", "text_to_image"])
    return folder / "text_to_image"


def cpp(row: Row, stage: Stage) -> Command:
    """The C++ example on this machine, with the library of the installed wheel."""
    if absent := missing_tools(["cmake", "c++"]):
        raise NotRunError("; ".join(absent))
    program = build_example(stage.work / "example")
    picture = stage.picture(row.key, ".bmp")
    layers = ("--library", library_path()) if row.library else ("--no-library",)
    words = (program, *layers, "--runtime", emulation.x86_runtime(), stage.bundle, stage.prompt)
    return Command((*words, picture), picture, installed("onnxruntime"))


def cpp_aarch64(row: Row, stage: Stage) -> Command:
    """The C++ example and the library, cross-compiled, under qemu; the wheel's runtime."""
    if absent := missing_tools(["cmake", "aarch64-linux-gnu-g++", "qemu-aarch64"]):
        raise NotRunError("; ".join(absent))
    toolchain = ("--toolchain", str(emulation.TOOLCHAIN))
    program = build_example(stage.work / "example-aarch64", *toolchain)
    folder = stage.work / "library-aarch64"
    emulation.call(["cmake", *toolchain, "-S", emulation.SOURCE, "-B", folder])
    emulation.call(["cmake", "--build", folder, "--target", "fp4dit_ops"])
    try:
        runtime = emulation.aarch64_runtime(stage.work)
    except CheckError as error:
        raise NotRunError(f"no wheel for aarch64: {last_line(error)}") from error
    machine = Machine.aarch64("max", emulation.Build(folder), stage.work)
    picture = stage.picture(row.key, ".bmp")
    words: list[str | Path] = [*machine.emulator, program, "--library", machine.build.library]
    words += ["--threads", "1", "--runtime", runtime, stage.bundle, stage.prompt, picture]
    return Command(tuple(words), picture, installed("onnxruntime"), emulated=True)


def node(row: Row, stage: Stage) -> Command:
    """A copy of examples/node, its packages installed as its lock file says."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise NotRunError(f"{program} is not installed")
    copy = stage.work / "node"
    example, pipeline = Path("examples") / "node", Path("fp4dit_onnx") / "web" / "js"
    for part in (example, pipeline):
        ignored = shutil.ignore_patterns("node_modules")
        shutil.copytree(ROOT / part, copy / part, ignore=ignored, dirs_exist_ok=True)
    package = copy / example / "node_modules" / "onnxruntime-node" / "package.json"
    # The scripts would fetch CUDA's libraries.
    words = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix")
    try:
        if not package.is_file():
            emulation.call([*words, copy / example])
    except CheckError as error:
        raise NotRunError(f"npm cannot install its packages: {last_line(error)}") from error
    picture = stage.picture(row.key)
    drawing = ("node", copy / example / "generate.mjs", stage.bundle, stage.prompt, picture)
    return Command(drawing, picture, str(json.loads(package.read_text())["version"]))


def web(row: Row, stage: Stage) -> Command:
    """The page of ``fp4dit-onnx serve`` in headless Chromium."""
    if not any(map(shutil.which, ("chromium", "chromium-browser"))):
        raise NotRunError("Chromium is not installed")
    installed("playwright")
    package = json.loads((ROOT / "fp4dit_onnx" / "web" / "package.json").read_text())
    picture = stage.picture(row.key)
    words = (sys.executable, ROOT / "tools" / "draw_in_browser.py", stage.bundle, stage.prompt)
    return Command((*words, picture), picture, package["dependencies"]["onnxruntime-web"])


def openvino(row: Row, stage: Stage) -> Command:
    """OpenVINO, on the bundle with its function bodies put in place of the operators."""
    version = installed("openvino").split("-")[0]
    inlined = stage.work / "inlined"
    shutil.rmtree(inlined, ignore_errors=True)
    target = ("--target", "inline", "-o", inlined)
    emulation.call([sys.executable, "-P", "-m", "fp4dit_onnx", "convert", stage.bundle, *target])
    return drawn_with(row.key, "openvino", inlined, stage, version)


def cuda(row: Row, stage: Stage) -> Command:
    """onnxruntime-gpu's CUDA provider."""
    if isinstance(nvidia_driver(), Trouble):
        raise NotRunError("no GPU")
    version = installed("onnxruntime-gpu")
    return generate(row, stage, Path(sys.executable), version, "cuda")


def drawn_with(key: str, runtime: str, bundle: Path, stage: Stage, version: str) -> Command:
    """tools/draw_with.py."""
    picture = stage.picture(key)
    program = ROOT / "tools" / "draw_with.py"
    words = (sys.executable, program, runtime, bundle, stage.prompt, picture)
    path = os.environ.get("PYTHONPATH", "")
    return Command(words, picture, version, {"PYTHONPATH": os.pathsep.join([str(ROOT), path])})


OLD = functools.partial(in_environment, f"onnxruntime=={OLDEST}")
NEW = functools.partial(in_environment, "onnxruntime")
ROWS = (
    Row("python", "ONNX Runtime, Python", KERNELS, here, exact=True),
    Row("python-bodies", "ONNX Runtime, Python", BODIES, here),
    Row("cpp", "ONNX Runtime, C++, x86-64", KERNELS, cpp),
    Row("cpp-bodies", "ONNX Runtime, C++, x86-64", BODIES, cpp),
    Row("cpp-aarch64", "ONNX Runtime, C++, aarch64 (qemu)", KERNELS, cpp_aarch64),
    Row("node", "onnxruntime-node", BODIES, node),
    Row("web", "onnxruntime-web, Chromium", BODIES, web),
    Row("openvino", "OpenVINO, inlined bundle", BODIES, openvino),
    Row("oldest", "oldest ONNX Runtime, Python", KERNELS, OLD),
    Row("oldest-bodies", "oldest ONNX Runtime, Python", BODIES, OLD),
    Row("newest", "newest ONNX Runtime of PyPI, Python", KERNELS, NEW),
    Row("newest-bodies", "newest ONNX Runtime of PyPI, Python", BODIES, NEW),
    Row("cuda", "onnxruntime-gpu, CUDA provider", BODIES, cuda),
)
