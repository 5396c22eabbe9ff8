#!/usr/bin/env python3
"""Run a bundle from a wheel alone: a fresh environment, no compiler, no torch, no network.

    python tools/check_wheel.py dist/fp4dit_onnx-*.whl --bundle BUNDLE

A virtual environment gets the wheel and what its metadata asks for, nothing else; the bundle is
copied beside it; the network is cut off (Linux, as root); and the commands run with a PATH of that
environment only. The image must equal, bit for bit, the one that this environment generates. A line for
each check, exit 1 if one fails.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

__all__ = ["Place", "bare_place", "cut_network", "linked_distributions", "main", "run_checks"]

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "red apple"
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "cmake", "ninja", "make")
NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of Linux."""
SECONDS = 300


class Place(NamedTuple):
    """An environment with the wheel, and the folder that commands run in."""

    python: Path
    work: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables: nothing of the caller's but the number of threads."""
        kept = {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")}
        return {"PATH": str(self.python.parent), "HOME": str(self.work), **kept}

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment here."""
        return subprocess.run(
            [str(self.python.parent / command[0]), *command[1:]],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )


# --- the environment -----------------------------------------------------------------------------


def linked_distributions(requirements: list[str]) -> Iterator[str]:
    """Names of the distributions that `requirements` bring, as this environment has them."""
    todo = [Requirement(line) for line in requirements]
    seen: set[tuple[str, str]] = set()
    while todo:
        wanted = todo.pop()
        for extra in ("", *wanted.extras):
            if (wanted.name, extra) in seen:
                continue
            seen.add((wanted.name, extra))
            for line in distribution(wanted.name).requires or ():
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    todo.append(needed)
    yield from sorted({name for name, _ in seen})


def _link(name: str, packages: Path) -> None:
    """Put links to a distribution's files into the folder `packages`."""
    found = distribution(name)
    tops = {path.parts[0] for path in found.files or () if ".." not in path.parts}
    for top in tops - {"__pycache__"}:
        if not (packages / top).exists():
            (packages / top).symlink_to(Path(str(found.locate_file(top))).resolve())


def bare_place(
    wheel: Path, folder: Path, *, extras: str, link: bool, interpreter: str = sys.executable
) -> Place:
    """A virtual environment with `wheel` and what it needs, in `folder`.

    Args:
        wheel: the wheel file.
        folder: new or empty.
        extras: of the package, as in ``cpu,view``.
        link: take what the wheel needs from this environment, by links, instead of from an index.
        interpreter: the Python to make it with.

    Raises:
        SystemExit: pip failed; its output is the message.
    """
    with_pip = ["--without-pip"] if link else []
    make = [interpreter, "-m", "venv", "--symlinks", *with_pip, str(folder / "env")]
    subprocess.run(make, check=True)
    python = folder / "env" / "bin" / "python"
    if link:
        (packages,) = (folder / "env").glob("lib/python*/site-packages")
        for name in linked_distributions([f"fp4dit-onnx[{extras}]"]):
            if name != "fp4dit-onnx":
                _link(name, packages)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index"]
        command = [*pip, "--no-deps", str(wheel)]
    else:
        command = [str(python), "-m", "pip", "install", f"{wheel}[{extras}]"]
    settings = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_QUIET": "1"}
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: pip cannot install {wheel.name}: {done.stderr.strip()}")
    (folder / "work").mkdir()
    return Place(python, folder / "work")


def cut_network() -> bool:
    """Move this process to a network namespace that has the loopback only; False if it cannot."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return False
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK) != 0:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = struct.pack("16sH14s", b"lo", 0x1, b"")  # interface, IFF_UP
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
    return True


# --- checks: what was found; a ValueError says what is wrong -------------------------------------


def _is_bare(place: Place) -> str:
    found = [name for name in COMPILERS if shutil.which(name, path=place.environment["PATH"])]
    if found:
        raise ValueError(f"on the PATH: {', '.join(found)}")
    tried = place.call("python", "-c", "import torch")
    if "ModuleNotFoundError: No module named 'torch'" not in tried.stderr:
        raise ValueError("torch can be imported")
    return "no compiler, no torch"


def _succeeds(*command: str) -> Callable[[Place], str]:
    def check(place: Place) -> str:
        done = place.call("fp4dit-onnx", *command)
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines()
            raise ValueError("\n".join([f"exit code {done.returncode}", *said[-30:]]))
        lines = done.stdout.strip().splitlines()
        return lines[-1].strip() if lines else "done"

    return check


def _draws_the_same(place: Place) -> str:
    drawing = ["generate", "bundle", "--prompt", PROMPT, "--output"]
    said = _succeeds(*drawing, "there.png")(place)
    here = [sys.executable, "-m", "fp4dit_onnx", *drawing, "here.png"]
    subprocess.run(here, cwd=place.work, check=True, capture_output=True, timeout=SECONDS)
    first, second = ((place.work / name).read_bytes() for name in ("there.png", "here.png"))
    if first != second:
        raise ValueError("the image differs from the one that this environment generates")
    return f"{said}; the bits of this environment's image"


def _serves(place: Place) -> str:
    command = [str(place.python.parent / "fp4dit-onnx"), "serve", "bundle", "--no-browser"]
    with subprocess.Popen(
        [*command, "--port", "0"],
        cwd=place.work,
        env={**place.environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        said = []
        try:
            for line in server.stdout or ():
                said.append(line)
                if found := re.search(r"http://\S+", line):
                    with urllib.request.urlopen(found[0], timeout=20) as page:
                        return f"{found[0]} answers {page.status}, {len(page.read())} bytes"
        finally:
            server.terminate()
    raise ValueError("no address was printed: " + "".join(said))


CHECKS: dict[str, Callable[[Place], str]] = {
    "bare environment": _is_bare,
    "doctor": _succeeds("doctor"),
    "inspect": _succeeds("inspect", "bundle"),
    "verify --quick": _succeeds("verify", "bundle", "--quick"),
    "generate": _draws_the_same,
    "serve": _serves,
}


def run_checks(place: Place, bundle: Path) -> list[str]:
    """Run every check with a copy of `bundle`; prints a line each, returns the names that failed."""
    shutil.copytree(bundle, place.work / "bundle")
    return [name for name, check in CHECKS.items() if not _holds(name, check, place)]


def _holds(name: str, check: Callable[[Place], str], place: Place) -> bool:
    try:
        print(f"ok      {name}: {check(place)}", flush=True)
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        print(f"FAILED  {name}: {error}", flush=True)
        return False
    return True


def _demo_bundle(folder: Path) -> Path:
    """The embedded demo pipeline as a bundle, rounded to nearest."""
    command = ["-m", "fp4dit_onnx", "export", "--method", "fp-rtn", "--output", "made"]
    subprocess.run([sys.executable, *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "made"


def main(arguments: list[str] | None = None) -> int:
    """Check the wheel; 0 if all checks hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--bundle", type=Path, help="default: the demo, exported here")
    parser.add_argument("--extras", default="cpu", help="of the package (default: cpu)")
    parser.add_argument(
        "--link", action="store_true", help="what the wheel needs is linked from here: no index"
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = bare_place(
            given.wheel.resolve(),
            folder,
            extras=given.extras,
            link=given.link,
            interpreter=given.python,
        )
        bundle = given.bundle.resolve() if given.bundle else _demo_bundle(folder)
        print("network: " + ("cut off" if cut_network() else "not cut off: needs Linux and root"))
        failed = run_checks(place, bundle)
    print(f"{len(CHECKS) - len(failed)} of {len(CHECKS)} checks hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
