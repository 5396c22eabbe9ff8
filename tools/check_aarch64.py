"""Check that other processors compute what this one does, bit for bit, under qemu.

    python tools/check_aarch64.py                           # all checks: some minutes
    python tools/check_aarch64.py --only suite              # build, and the C++ tests: a minute
    python tools/check_aarch64.py --bundle demo-out/fp4dit --json summary.json

The machine must be x86-64. Checks:

    suite       the C++ tests on an aarch64 of each kind: without dot products, with them, with i8mm
    sanitizers  the same with address and undefined-behaviour sanitizers
    nodes       every quantized node of every step of an image, on the inputs that it had here:
                the same bits on each aarch64
    models      the whole transformer on the inputs of `verify`, within verify's bound
    image       text encoder, transformer and decoder all on aarch64, against the image generated here
    x86         tests and nodes on an x86-64 without AVX

Exit codes: 0 all hold, 1 one does not, 2 they cannot be made here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from emulation import (
    AARCH64_CPUS,
    Build,
    CheckError,
    EmulatedSession,
    Machine,
    aarch64_runtime,
    build,
    missing_tools,
    x86_runtime,
)
from PIL import Image

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.probe import exposed, load_model, node_feed, node_model
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.evaluation.metrics import psnr
from fp4dit_onnx.families import family_of
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.runtime.library import Library
from fp4dit_onnx.runtime.pipeline import Pipeline
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.verification.cases import CASES, case_inputs
from fp4dit_onnx.verification.verify import INDEPENDENT_DB, NOTHING_QUANTIZED_DB

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
CHECKS = ("suite", "sanitizers", "nodes", "models", "image", "x86")
BEST_CPU = list(AARCH64_CPUS)[-1]
OTHER_PICTURE_DB = 20.0
"""Another seed of the default prompt is 19.8 dB away."""


@dataclass(frozen=True)
class Result:
    """One line of the summary."""

    name: str
    ok: bool
    detail: str
    seconds: float


@dataclass
class Recording:
    """What the transformer was given at each step of an image generated here."""

    inner: Any
    feeds: list[dict[str, Array]] = field(default_factory=list)

    def get_inputs(self) -> Any:
        """As the session that it stands before."""
        return self.inner.get_inputs()

    def get_outputs(self) -> Any:
        """As the session that it stands before."""
        return self.inner.get_outputs()

    def run(self, outputs: Any, feed: Mapping[str, Array]) -> list[Array]:
        """Keep the inputs, and run."""
        self.feeds.append(dict(feed))
        result: list[Array] = self.inner.run(outputs, feed)
        return result


class Subject:
    """A bundle, the image that it generates here, and the recorded inputs of its nodes."""

    def __init__(self, folder: Path, work: Path, prompt: str, steps: int | None) -> None:
        self.bundle = Bundle.open(folder)
        self.prompt, self.steps, self.work = prompt, steps, work
        pipeline = Pipeline(folder, threads=1)
        recording = Recording(pipeline.transformer)
        pipeline.transformer = recording
        self.picture = self.draw(pipeline)
        self.stock_picture = self.draw(Pipeline(folder, library=False, threads=1))
        self.feeds = recording.feeds
        model = load_model(self.bundle.transformer)
        everything, nodes = exposed(model), node_model(model)
        self.nodes_path = work / "nodes.onnx"
        onnx.save(everything, work / "exposed.onnx")
        onnx.save(nodes, self.nodes_path)
        self._names = [o.name for o in everything.graph.output]
        self._exposed = session(work / "exposed.onnx", threads=1)
        self._nodes = session(self.nodes_path, threads=1)
        self._model = nodes
        self.node_outputs = [o.name for o in nodes.graph.output]

    def draw(self, pipeline: Pipeline) -> Image.Image:
        """The image, by this pipeline."""
        return pipeline.generate([self.prompt], seeds=0, steps=self.steps)[0]

    def step(self, index: int) -> tuple[Feed, list[Array]]:
        """Inputs of all nodes at a step, and what they make of them here."""
        feed = self.feeds[index]
        values = dict(zip(self._names, self._exposed.run(self._names, feed), strict=True))
        inputs = node_feed(self._model, {**feed, **values})
        return inputs, self._nodes.run(None, inputs)


class Checker:
    """Runs checks, prints a line for each, and keeps the results.

    Args:
        work: folder for builds, wheel, bundle and models.
        options: the command line's.
    """

    def __init__(self, work: Path, options: argparse.Namespace) -> None:
        self.results: list[Result] = []
        self._work, self._options = work, options
        self._sanitized = work / "build-aarch64-sanitized"
        self._subject: Subject | None = None
        self._builds: dict[bool, Build] = {}

    def check(self, name: str, run: Callable[[], str]) -> bool:
        """One check, and whether it holds: `run` returns what it covered, or raises."""
        start = time.monotonic()
        try:
            ok, detail = True, run()
        except (CheckError, Fp4DitError) as error:
            ok, detail = False, str(error)
        seconds = time.monotonic() - start
        self.results.append(Result(name, ok, detail, round(seconds, 1)))
        print(f"{'ok' if ok else 'FAILED':6}  {name} ({seconds:.1f} s)  {detail}", flush=True)
        return ok

    def run(self, names: list[str]) -> None:
        """The checks of these names, after the builds that they need."""
        if names != ["x86"] and not self.check(
            "build for aarch64", partial(self._build, cross=True)
        ):
            return
        if not set(names) <= {"suite", "sanitizers"}:
            if not self.check("build for x86-64", partial(self._build, cross=False)):
                return
            # What is compared with must be of the same sources.
            os.environ["FP4DIT_LIBRARY"] = str(self._builds[False].library)
        if "suite" in names:
            for cpu in AARCH64_CPUS:
                self.check(f"C++ tests, {cpu}", self._arm(cpu).suite)
        if "sanitizers" in names:
            self.check("build with sanitizers", self._build_sanitized)
            for cpu in AARCH64_CPUS if self.results[-1].ok else ():
                machine = replace(self._arm(cpu), build=Build(self._sanitized))
                self.check(f"C++ tests with sanitizers, {cpu}", machine.suite)
        if "nodes" in names:
            for cpu in AARCH64_CPUS:
                self.check(f"nodes, {cpu}", partial(self._arm_nodes, cpu))
        if "models" in names:
            self.check(f"whole transformer, {BEST_CPU}", self._models)
        if "image" in names:
            self.check(f"image, {BEST_CPU}", self._picture)
        if "x86" in names:
            old = Machine.old_x86(self._builds[False])
            self.check(f"C++ tests, {old.cpu}", old.suite)
            self.check(f"nodes, {old.cpu}", lambda: self._nodes(old, x86_runtime()))

    def _build(self, *, cross: bool) -> str:
        folder = self._work / ("build-aarch64" if cross else "build-x86_64")
        self._builds[cross] = build(folder, cross=cross, jobs=self._options.jobs)
        return str(folder)

    def _build_sanitized(self) -> str:
        build(self._sanitized, cross=True, jobs=self._options.jobs, sanitize=True)
        return str(self._sanitized)

    def _arm(self, cpu: str) -> Machine:
        return Machine.aarch64(cpu, self._builds[True], self._work)

    def _arm_nodes(self, cpu: str) -> str:
        return self._nodes(self._arm(cpu), aarch64_runtime(self._work))

    def _subject_now(self) -> Subject:
        if self._subject is None:
            folder = self._options.bundle or demo_bundle(self._work)
            say(f"generating {self._options.prompt!r} here with {folder}")
            self._subject = Subject(folder, self._work, self._options.prompt, self._options.steps)
        return self._subject

    def _nodes(self, machine: Machine, runtime: Path) -> str:
        """Every output of every quantized node, at every step, has the bits that it has here."""
        subject = self._subject_now()
        names, compared = subject.node_outputs, 0
        emulated = EmulatedSession(
            machine, runtime, subject.nodes_path, library=True, folder=self._work / "tensors"
        )
        with closing(emulated):
            if emulated.isa != machine.best:
                raise CheckError(f"the library chose {emulated.isa}, expected {machine.best}")
            for index in range(len(subject.feeds)):
                inputs, wanted = subject.step(index)
                found = emulated.run(None, inputs)
                if differing := first_difference(names, wanted, found):
                    raise CheckError(f"step {index}: {differing}")
                compared += sum(array.size for array in wanted)
        return (
            f"{len(subject.feeds)} steps x {len(names)} outputs, {compared:,} values: all bits "
            f"equal to {Library().isa}'s; kernels {listed(emulated.counters)}"
        )

    def _models(self) -> str:
        """The whole transformer is as near as verify demands of any evaluator."""
        subject = self._subject_now()
        bundle = subject.bundle
        source = bundle.manifest.source
        family = family_of(source.pipeline, source.transformer)
        config = json.loads((bundle.folder / "transformer" / "config.json").read_text())
        here = session(bundle.transformer, threads=1)
        found = []
        with closing(self._emulated(bundle.transformer, library=True)) as emulated:
            for index, own in enumerate(bundle.manifest.case_sqnr_db):
                bound = NOTHING_QUANTIZED_DB if own is None else own - INDEPENDENT_DB
                feed = case_inputs(family, config, index)
                distance = sqnr_db(emulated.run(None, feed)[0], here.run(None, feed)[0])
                found.append(f"{distance:.1f} dB (bound {bound:.1f})")
                if not distance >= bound:
                    raise CheckError(f"{CASES[index]}: {found[-1]}")
        return "SQNR against here: " + ", ".join(found)

    def _emulated(self, model: Path, *, library: bool) -> EmulatedSession:
        folder = self._work / f"tensors-{model.parent.name}"
        runtime = aarch64_runtime(self._work)
        machine = self._arm(BEST_CPU)
        return EmulatedSession(machine, runtime, model, library=library, folder=folder)

    def _picture(self) -> str:
        """An image whose every model ran on aarch64 looks like the one generated here."""
        subject = self._subject_now()
        bundle = subject.bundle
        pipeline = Pipeline(bundle.folder, threads=1)
        with (
            closing(self._emulated(bundle.text_encoder, library=False)) as text_encoder,
            closing(self._emulated(bundle.transformer, library=True)) as transformer,
            closing(self._emulated(bundle.vae_decoder, library=False)) as decoder,
        ):
            pipeline.text_encoder = text_encoder
            pipeline.transformer = transformer
            pipeline.vae_decoder = decoder
            there = subject.draw(pipeline)
        there.save(self._work / "aarch64.png")
        subject.picture.save(self._work / "x86_64.png")
        ours, theirs, stock = (
            np.asarray(p) for p in (subject.picture, there, subject.stock_picture)
        )
        distance = psnr(theirs, ours)
        largest = int(np.abs(theirs.astype(int) - ours.astype(int)).max())
        detail = (
            f"{len(subject.feeds)} steps: PSNR {distance:.1f} dB, largest difference {largest} of "
            f"255 (here, with and without the library: {psnr(stock, ours):.1f} dB); "
            f"kernels {listed(transformer.counters)}"
        )
        if distance < OTHER_PICTURE_DB:
            raise CheckError(f"{detail}; expected at least {OTHER_PICTURE_DB:g} dB")
        return detail


def first_difference(
    names: Sequence[str], wanted: Sequence[Array], found: Sequence[Array]
) -> str | None:
    """The first array that is not the same to the bit, None if all are."""
    for name, ours, theirs in zip(names, wanted, found, strict=True):
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
            kinds = f"{theirs.dtype} {theirs.shape}, expected {ours.dtype} {ours.shape}"
            return f"{name} is {kinds}"
        bits = [np.ascontiguousarray(a).view(f"u{a.itemsize}") for a in (ours, theirs)]
        differing = int((bits[0] != bits[1]).sum())
        if differing:
            return f"{name} differs in {differing} of {ours.size} values"
    return None


def listed(counters: Mapping[str, int]) -> str:
    """Counts of kernel calls in a line."""
    return ", ".join(f"{key} {calls}" for key, calls in sorted(counters.items())) or "none"


def say(text: str) -> None:
    """A line of progress."""
    print(f"...     {text}", flush=True)


def demo_bundle(work: Path) -> Path:
    """The demo's bundle, exported unless it is there."""
    folder = work / "bundle"
    if not (folder / "quantization.json").is_file():
        say("exporting the demo's bundle (one to two minutes)")
        words = ["export", "--bits", "w4a6", "--preset", "fast", "--weight-format", "auto"]
        command = [sys.executable, "-P", "-m", "fp4dit_onnx", *words, "--output", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise CheckError(f"the export failed: {result.stderr.strip()[-500:]}")
    return folder


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(CHECKS), help="checks, comma separated")
    parser.add_argument("--bundle", type=Path, help="default: the demo's, exported")
    parser.add_argument("--work", type=Path, help="folder to keep; default: a temporary one")
    parser.add_argument("--prompt", default="giraffe face")
    parser.add_argument("--steps", type=int, help="default: the bundle's")
    parser.add_argument("--json", type=Path, help="file for a summary")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    options.only = [name.strip() for name in options.only.split(",")]
    unknown = [name for name in options.only if name not in CHECKS]
    if unknown:
        parser.error(f"--only {unknown[0]}: expected among {', '.join(CHECKS)}")
    return options


def obstacles(names: list[str]) -> list[str]:
    """Why the checks cannot be made on this machine."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return [f"this machine is {sys.platform} {platform.machine()}: expected linux x86_64"]
    needed = ["cmake"]
    if names != ["x86"]:
        needed += ["aarch64-linux-gnu-g++", "qemu-aarch64"]
    if not set(names) <= {"suite", "sanitizers"}:
        needed += ["c++"]
    return missing_tools([*needed, *(["qemu-x86_64"] if "x86" in names else [])])


def main(arguments: list[str] | None = None) -> int:
    """Run the checks; see the module's text for the exit codes."""
    options = parse(arguments)
    if found := obstacles(options.only):
        print("\n".join(f"error: {line}" for line in found), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        work = (options.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        checker = Checker(work, options)
        checker.run(options.only)
    failed = [result.name for result in checker.results if not result.ok]
    if options.json is not None:
        versions = {name: importlib.metadata.version(name) for name in ("onnxruntime", "numpy")}
        rows = [asdict(result) for result in checker.results]
        summary = {"ok": not failed, "versions": versions, "checks": rows}
        options.json.write_text(json.dumps(summary, indent=1) + "\n")
    verdict = f"failed: {', '.join(failed)}" if failed else "all hold"
    print(f"{len(checker.results) - len(failed)} of {len(checker.results)} checks; {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
