"""Count the instructions of kernels on aarch64, ours and ONNX Runtime's own, under qemu.

    python tools/aarch64_instructions.py --write                 # into docs/aarch64.md: ten minutes
    python tools/aarch64_instructions.py --shape 64x1152x1152    # one product, printed

No ARM machine is needed, and none is measured: a plugin of qemu (tools/count_instructions.c) counts
what one thread executes in one run of a model of one operator, file reading and all. The models are
those of `fp4dit-onnx bench`. From the counts follows how many cycles a run takes at least on a core
that starts 4 instructions a cycle, of them 2 products or 1 that is a long one: an estimate that
knows nothing of caches and latencies.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emulation import (
    AARCH64_CPUS,
    Build,
    CheckError,
    EmulatedSession,
    Machine,
    aarch64_runtime,
    build,
    call,
    missing_tools,
)
from endings import ends_in_a_line
from pages import Section, written_by

from fp4dit_onnx.benchmark import attention, linear
from fp4dit_onnx.benchmark.backend import Backend
from fp4dit_onnx.benchmark.requests import Formats, operator_cases
from fp4dit_onnx.errors import Fp4DitError

__all__ = ["KINDS", "Counts", "Subject", "subjects", "table"]

PLUGIN = Path(__file__).with_name("count_instructions.c")
SECTION = Section("aarch64.md", "instructions")
SHAPES, ATTENTIONS = ("1024x1152x1152", "1x1152x6912"), ("1x1024x4x72",)
CPUS = {"neoverse-n1": "neoverse-n1", "max": "max,sve=off,sme=off"}
"""Those of `AARCH64_CPUS` that are counted -> what qemu is asked for. Few ARM machines have SVE and
SME; with them ONNX Runtime has other kernels."""
PEERS = ("ort-float32", "ort-int8", "ort-matmulnbits", "ort-mha")
BASE = {"linear": "ort-int8", "attention": "ort-mha"}
RUNS = (1, 3)
ISSUED = 4
"""Instructions that start in a cycle."""
STARTED = {"smmla": 2, "sdot": 2, "smlal": 1, "fmla": 2}
"""Of them products, by kind: an assumption, of cores of the kind of Neoverse N1."""
KINDS: Mapping[str, Sequence[tuple[int, int]]] = {
    "smmla": ((0xFFE0FC00, 0x4E80A400), (0xFFE0FC00, 0x6E80A400), (0xFFE0FC00, 0x4E80AC00)),
    "sdot": (
        (0xBFE0FC00, 0x0E809400),
        (0xBFE0FC00, 0x2E809400),
        (0xBFC0F400, 0x0F80E000),
        (0xBFC0F400, 0x2F80E000),
    ),
    "smlal": (
        (0x9F20FC00, 0x0E208000),
        (0x9F20FC00, 0x0E20C000),
        (0x9F00F400, 0x0F002000),
        (0x9F00F400, 0x0F00A000),
    ),
    "fmla": (
        (0xBFA0FC00, 0x0E20CC00),
        (0xBFA0FC00, 0x2E20DC00),
        (0xBF80F400, 0x0F801000),
        (0xBF80F400, 0x0F809000),
    ),
}
"""Products of vectors -> masks and values of their encodings, signed and unsigned, by a vector or an
element (Arm A64 instruction set): 32, 16, 8 or 4, and 4 multiplications each."""


@dataclass(frozen=True)
class Subject:
    """What is counted: a backend on a case.

    Attributes:
        title: in the table.
        backend: of `fp4dit-onnx bench`, with a model.
        case: of its kind.
    """

    title: str
    backend: Backend[Any]
    case: Any

    @property
    def ours(self) -> bool:
        """Whether it needs the library."""
        return self.backend.isa is not None


@dataclass(frozen=True)
class Counts:
    """Instructions of a run.

    Attributes:
        total: all.
        kinds: the products, by name in `KINDS`.
    """

    total: float
    kinds: Mapping[str, float]

    @property
    def cycles(self) -> float:
        """At least, see the module's text."""
        products = sum(count / STARTED[name] for name, count in self.kinds.items())
        return max(self.total / ISSUED, products)

    @property
    def most(self) -> str:
        """The kind that there is most of."""
        return max(self.kinds, key=lambda name: self.kinds[name])


def subjects(shapes: Sequence[str], attentions: Sequence[str], isa: str) -> Iterator[Subject]:
    """Ours by the usual formats and by those of the recipe tuned, then ONNX Runtime's.

    Raises:
        UsageError: sizes that are not.
    """
    usual, tuned = Formats(), Formats(scale="int4*f32", group_size=32, hadamard=64)
    for case in operator_cases(shapes, (), usual, default=False):
        yield Subject("ours, W4A6", linear.ours(isa), case)
        for other in operator_cases([case.name], (), tuned, default=False):
            yield Subject("ours, tuned's W4A6", linear.ours(isa), other)
        yield from (Subject(p.name, p, case) for p in linear.PEERS if p.name in PEERS)
    for case in operator_cases((), attentions, usual, default=False):
        yield Subject("ours, q, k, v in 6 bits", attention.ours(isa), case)
        yield from (Subject(p.name, p, case) for p in attention.PEERS if p.name in PEERS)


class Counter:
    """Counts runs of models on one processor.

    Args:
        cpu: of `CPUS`.
        built: for aarch64.
        work: folder for models, tensors and counts.
    """

    def __init__(self, cpu: str, built: Build, work: Path) -> None:
        self._work, self._plugin = work, work / "libcount.so"
        self._machine = Machine.aarch64(cpu, built, work)
        words = [CPUS[cpu] if word == cpu else word for word in self._machine.emulator]
        kinds = [f"kind={m:x}:{v:x}" for pairs in KINDS.values() for m, v in pairs]
        self._output = work / "counts.txt"
        loaded = ",".join([str(self._plugin), f"output={self._output}", *kinds])
        self._machine = replace(self._machine, emulator=(*words, "-plugin", loaded))
        flags = ("-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden")
        call(["cc", *flags, "-o", self._plugin, PLUGIN])

    @property
    def isa(self) -> str:
        """The best instruction set of the library there."""
        return self._machine.best

    def counts(self, subject: Subject) -> Counts:
        """Of one run, after one that may pack weights.

        Raises:
            CheckError: the model does not run, or with other kernels.
        """
        few, many = (self._counted(subject, runs) for runs in RUNS)
        difference = [(b - a) / (RUNS[1] - RUNS[0]) for a, b in zip(few, many, strict=True)]
        total, rest, kinds = difference[0], iter(difference[1:]), {}
        for name, pairs in KINDS.items():
            kinds[name] = sum(next(rest) for _ in pairs)
        return Counts(total, kinds)

    def _counted(self, subject: Subject, runs: int) -> list[int]:
        assert subject.backend.model is not None
        path = self._work / "model.onnx"
        path.write_bytes(subject.backend.model(subject.case))
        runtime, tensors = aarch64_runtime(self._work), self._work / "tensors"
        emulated = EmulatedSession(
            self._machine, runtime, path, library=subject.ours, folder=tensors
        )
        with closing(emulated):
            if subject.ours and emulated.isa != self.isa:
                raise CheckError(f"the library chose {emulated.isa}, expected {self.isa}")
            for _ in range(runs):
                (result,) = emulated.run(None, subject.case.feed)
        subject.case.sqnr(result)  # raises what is no result
        return [int(line) for line in self._output.read_text().splitlines()]


def table(found: Sequence[tuple[Subject, Counts]]) -> str:
    """The counts of one processor as Markdown, a table for each case."""
    lines: list[str] = []
    for name in dict.fromkeys(subject.case.name for subject, _ in found):
        rows = [(s, c) for s, c in found if s.case.name == name]
        base = next((c for s, c in rows if s.backend.name == BASE[s.case.kind]), None)
        lines += [f"**{name}**", ""]
        against = f"x {BASE[rows[0][0].case.kind]}"
        counted = ("instructions, M", "vector products, M", "most are", "cycles at least, M")
        heads = ("", *counted, against)
        lines += [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        for subject, counts in rows:
            products = sum(counts.kinds.values())
            numbers = (f"{v / 1e6:.2f}" for v in (counts.total, products))
            ratio = f"{base.cycles / counts.cycles:.2f}" if base else ""
            cells = (subject.title, *numbers, counts.most, f"{counts.cycles / 1e6:.2f}", ratio)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def measured(work: Path, cpu: str, built: Build, given: argparse.Namespace) -> str:
    """The tables of a processor."""
    counter = Counter(cpu, built, work)
    found = []
    for subject in subjects(given.shape, given.attention, counter.isa):
        counts = counter.counts(subject)
        said = f"{counts.total / 1e6:.2f} M instructions"
        print(f"{cpu} {subject.case.name} {subject.title}: {said}", file=sys.stderr, flush=True)
        found.append((subject, counts))
    return f"`{CPUS[cpu]}`, kernels {counter.isa}:\n\n{table(found)}"


@ends_in_a_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", action="append", help="MxKxN of a linear; by default two")
    parser.add_argument("--attention", action="append", help="BxSxHxD; by default one")
    parser.add_argument("--cpu", choices=list(CPUS), action="append", help="by default all")
    parser.add_argument("--work", type=Path, help="folder to keep; default: a temporary one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help=f"into docs/{SECTION.page}")
    given = parser.parse_args(arguments)
    if not given.shape and not given.attention:
        given.shape, given.attention = SHAPES, ATTENTIONS
    given.shape, given.attention = given.shape or (), given.attention or ()
    list(subjects(given.shape, given.attention, AARCH64_CPUS["max"]))  # refuses before work
    needed = ("aarch64-linux-gnu-g++", "qemu-aarch64", "cmake", "c++")
    if absent := missing_tools(needed):
        raise Fp4DitError("; ".join(absent))
    with tempfile.TemporaryDirectory() as scratch:
        work = (given.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        try:
            built = build(work / "build-aarch64", cross=True, jobs=given.jobs)
            parts = [measured(work, cpu, built, given) for cpu in given.cpu or CPUS]
        except CheckError as error:
            raise Fp4DitError(str(error)) from error
    text = "\n\n".join([f"{written_by('aarch64_instructions.py --write')}.", *parts])
    if given.write:
        SECTION.write(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
