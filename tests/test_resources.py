"""What a process may use: threads far above the cores are refused wherever they are asked for."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.system import resources
from fp4dit_onnx.system.resources import Resources, checked_threads, most_threads, usable_cores


@pytest.mark.parametrize("threads", [-1, 0, most_threads() + 1, 100_000])
def test_threads_that_no_machine_has(threads: int) -> None:
    with pytest.raises(UsageError, match=rf"threads {threads}: expected 1 to {most_threads()} on"):
        checked_threads(threads)


@pytest.mark.parametrize("threads", ["2", True, 1.5, float("nan"), [1], None, 10**5000], ids=type)
def test_threads_that_are_no_number(threads: Any) -> None:
    with pytest.raises(UsageError, match="expected 1 to") as caught:
        checked_threads(threads)
    assert len(str(caught.value)) < 200


def test_more_threads_than_cores_may_be_asked_for() -> None:
    assert usable_cores() < most_threads() == checked_threads(most_threads())


def in_a_session(bundle: Path) -> object:
    from fp4dit_onnx.runtime.session import session

    return session(bundle / "transformer" / "model.onnx", threads=100_000)


def in_a_pipeline(bundle: Path) -> object:
    from fp4dit_onnx.runtime.pipeline import Pipeline

    return Pipeline(bundle, threads=100_000)


def in_a_benchmark(bundle: Path) -> object:
    from fp4dit_onnx.benchmark import Settings

    return Settings(threads=100_000, seconds=1.0)


def in_a_backend(bundle: Path) -> object:
    from fp4dit_onnx.benchmark.sessions import make_session

    return make_session(bundle / "transformer" / "model.onnx", 100_000)


def in_a_limit(bundle: Path) -> object:
    from fp4dit_onnx.runtime.library import dot_product_limit, supported_isas

    return dot_product_limit(supported_isas()[0], "float", 100_000)


@pytest.mark.parametrize(
    "start", [in_a_session, in_a_pipeline, in_a_benchmark, in_a_backend, in_a_limit]
)
def test_who_starts_threads_checks_their_number(
    start: Callable[[Path], Any], demo_bundle: Path
) -> None:
    with pytest.raises(UsageError, match="threads 100000: expected 1 to"):
        start(demo_bundle)


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_commands_end_in_a_line(command: str, demo_bundle: Path, tmp_path: Path, run: Any) -> None:
    words = {"generate": ["--prompt", "a", "-o", str(tmp_path / "a.png")], "bench": ["--dry-run"]}
    refused = run(command, demo_bundle, "--threads", "100000", *words[command])
    refused.refuses("error: threads 100000: expected 1 to")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep less")
def test_what_is_free_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces below one that is in use stay with the process until they are returned."""

    def resident() -> int:
        return resources._rss(resources._STATUS, "VmRSS:") or 0

    pieces = [bytes(60_000) for _ in range(4000)]
    pieces = pieces[-1:]
    before = resident()
    resources.return_memory()
    if before < resources._WORTH_RETURNING:
        assert resident() > before - 100_000_000
    monkeypatch.setattr(resources, "_WORTH_RETURNING", 0)
    resources.return_memory()
    assert resident() < before - 150_000_000
    assert pieces


def test_a_peak_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux's own count does, by some pages: 1,603,096,576 bytes and then 1,603,084,288."""
    counted = iter([100, 90, 120, 110, 105])
    monkeypatch.setattr(resources, "peak_rss", lambda: next(counted))
    noted = Resources()
    noted.imported()
    with noted.stage("one"):
        pass
    with noted.stage("two"):
        pass
    used = noted.used()
    assert (used.peak_rss_bytes_after_imports, used.peak_rss_bytes) == (100, 120)
    assert used.peaks == {"one": 120, "two": 120}


def test_a_system_that_tells_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "peak_rss", lambda: None)
    noted = Resources()
    with noted.stage("one"):
        pass
    used = noted.used()
    assert (used.peak_rss_bytes_after_imports, used.peak_rss_bytes, used.peaks) == (None, None, {})
