"""Running a case: load the available backends, check their results, time them in turns."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from fp4dit_onnx.benchmark.backend import Absent, Backend, Loaded, reason_of
from fp4dit_onnx.benchmark.case import Case
from fp4dit_onnx.benchmark.cold import evictor
from fp4dit_onnx.benchmark.rounds import (
    Spread,
    Turn,
    estimate,
    interleave,
    plan_rounds,
    ratios,
    settle,
)
from fp4dit_onnx.benchmark.sessions import running_on
from fp4dit_onnx.runtime.providers import ON_CPU, Placement
from fp4dit_onnx.system.progress import Reporter
from fp4dit_onnx.system.resources import checked_threads
from fp4dit_onnx.values import real, whole

if TYPE_CHECKING:
    from fp4dit_onnx.benchmark.image_rounds import ImageReport

__all__ = ["Outcome", "Report", "Settings", "run_case", "together"]


@dataclass(frozen=True)
class Settings:
    """How to time.

    Attributes:
        threads: of every backend.
        seconds: for all rounds of a case together.
        rounds: in place of as many as fit; None for these.
        limits: as `Machine.limits`.
        placed: where sessions of ONNX Runtime run.
        spinning: whether threads of ONNX Runtime's sessions wait busily for the next task.
        cold: empty the CPU's caches before every call; of images, drop the files' pages.
    """

    threads: int
    seconds: float
    rounds: int | None = None
    limits: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    placed: Placement = ON_CPU
    spinning: bool = True
    cold: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that nothing can be timed with."""
        checked_threads(self.threads)
        real("seconds", self.seconds, 0)
        if self.rounds is not None:
            whole("rounds", self.rounds, 1)

    def limit(self, isa: str | None, product: str | None) -> float | None:
        """10^9 operations per second that `isa` can reach in products of a kind; None if unknown."""
        return self.limits.get(isa or "", {}).get(product or "")


@dataclass(frozen=True)
class Outcome:
    """The result of one backend on a case.

    Attributes:
        name: of the backend.
        about: what it computed.
        isa: its instruction set, of ours only.
        threads: how many.
        spinning: see `Settings`.
        seconds: a call.
        rounds: that it took part in.
        gops: 10^9 operations per second at the median; None where they are not counted.
        limit_share: of what its instruction set can reach on this machine; None where unknown.
        ratio: how many times as fast as the baseline it was, round by round; None without baseline.
        sqnr_db: of its result against the reference; None if equal or without a reference.
    """

    name: str
    about: str
    isa: str | None
    threads: int
    spinning: bool
    seconds: Spread
    rounds: int
    gops: float | None
    limit_share: float | None
    ratio: Spread | None
    sqnr_db: float | None


@dataclass(frozen=True)
class Report:
    """A case and the results of all backends.

    Attributes:
        kind: of the case.
        name: of the case.
        operations: of the case; None where they are not counted.
        baseline: the backend that ratios are taken to.
        outcomes: of those who took part, in the order of their tables.
        absent: backend -> reason, of those who did not.
    """

    kind: str
    name: str
    operations: float | None
    baseline: str
    outcomes: tuple[Outcome, ...]
    absent: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


ReportT = TypeVar("ReportT", "Report", "ImageReport")


def together(reports: Sequence[ReportT]) -> ReportT:
    """Reports of one case, with different settings, as one with the outcomes of all."""
    outcomes = tuple(outcome for report in reports for outcome in report.outcomes)
    absent = {name: reason for report in reports for name, reason in report.absent.items()}
    return replace(reports[0], outcomes=outcomes, absent=absent)


@dataclass(frozen=True)
class _Ready:
    """A backend that computed the case once."""

    backend: Backend[Any]
    turn: Turn
    sqnr_db: float | None


def run_case(
    case: Case,
    backends: Sequence[Backend[Any]],
    baseline: str,
    settings: Settings,
    reporter: Reporter,
) -> Report:
    """Load, check and time `backends` on `case`."""
    ready: dict[str, _Ready] = {}
    absent: dict[str, str] = {}
    with reporter.stage(
        f"{case.kind} {case.name}: preparing", len(backends), "backends"
    ) as advance:
        for backend in backends:
            try:
                ready[backend.name] = _prepare(case, backend, settings)
            except Exception as cause:  # a peer may fail in any way: it is named, the others run
                absent[backend.name] = reason_of(cause)
            advance(1, backend.name)
    turns = {name: one.turn for name, one in ready.items()}
    lengths = {name: turn.seconds for name, turn in turns.items()}
    counts = plan_rounds(lengths, settings.seconds, settings.rounds)
    gc.collect()
    with reporter.stage(
        f"{case.kind} {case.name}: timing", sum(counts.values()), "turns"
    ) as advance:
        times = interleave(turns, counts, advance=lambda name: advance(1, name))
    outcomes = []
    for name, one in ready.items():
        outcomes.append(_outcome(case, one, times[name], ratios(times, name, baseline), settings))
    return Report(case.kind, case.name, case.operations, baseline, tuple(outcomes), absent)


def _prepare(case: Case, backend: Backend[Any], settings: Settings) -> _Ready:
    """Load it, warm it up, and hold its result against the reference."""
    if reason := backend.why_absent():
        raise Absent(reason)
    with running_on(settings.placed, spinning=settings.spinning):
        loaded: Loaded = backend.load(case, settings.threads)
    loaded.run()
    settle()
    seconds = estimate(loaded.run)
    turn = Turn(loaded.run, seconds, before=evictor() if settings.cold else None)
    return _Ready(backend, turn, case.sqnr(loaded.result()))


def _outcome(
    case: Case,
    one: _Ready,
    times: Sequence[float | None],
    compared: Sequence[float],
    settings: Settings,
) -> Outcome:
    own = [seconds for seconds in times if seconds is not None]
    seconds = Spread.of(own)
    limit = settings.limit(one.backend.isa, case.product)
    gops = None if case.operations is None else 1e-9 * case.operations / seconds.median
    return Outcome(
        name=one.backend.name,
        about=one.backend.about,
        isa=one.backend.isa,
        threads=settings.threads,
        spinning=settings.spinning,
        seconds=seconds,
        rounds=len(own),
        gops=gops,
        limit_share=gops / limit if gops and limit else None,
        ratio=Spread.of(compared) if compared else None,
        sqnr_db=one.sqnr_db,
    )
