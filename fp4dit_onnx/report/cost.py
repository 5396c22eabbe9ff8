"""Size, speed and memory of a bundle, compared with the float model."""

from __future__ import annotations

from dataclasses import dataclass

from fp4dit_onnx.benchmark.machine import Machine
from fp4dit_onnx.report import plots
from fp4dit_onnx.report.data import FLOAT, LIBRARY, Evidence, Memory, Speed
from fp4dit_onnx.report.facts import Subject
from fp4dit_onnx.report.plots import Figure
from fp4dit_onnx.report.tables import Cell, Table, Tile, nbytes, number, plain, table
from fp4dit_onnx.system.texts import size

__all__ = ["Cost", "cost_of", "is_busy", "milliseconds"]

Row = tuple[Cell, ...]
BUSY = 1.5
"""Processes per core that want to run, from which on times are called unreliable."""


@dataclass(frozen=True)
class Cost:
    """What the section on costs shows."""

    tiles: tuple[Tile, ...]
    figures: tuple[Figure, ...]
    table: Table
    note: str


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    value = 1000 * seconds
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def cost_of(subject: Subject) -> Cost:
    """Sizes from the manifest, time and memory from the evidence where they were measured."""
    evidence = subject.evidence
    speed = evidence.speed if evidence else None
    memory = evidence.memory if evidence else ()
    figures = [_size_figure(subject)]
    if speed and speed.timings:
        figures.append(_speed_figure(speed))
    if memory:
        figures.append(_memory_figure(memory))
    tiles = (_size_tile(subject), _speed_tile(evidence), _memory_tile(memory))
    rows = [*_size_rows(subject), *_speed_rows(speed), *_memory_rows(memory)]
    columns = ("what", "model", ">value", ">against float", "detail")
    caption = "Size, time of a denoising step, and memory"
    return Cost(tiles, tuple(figures), table(caption, columns, rows), _note(subject))


def _size_tile(subject: Subject) -> Tile:
    totals = subject.facts.totals
    share = totals.transformer_bytes / max(totals.transformer_bytes_float32, 1)
    detail = f"{100 * share:.1f}\u00a0% of {size(totals.transformer_bytes_float32)} in float32"
    return Tile("Transformer's weights", size(totals.transformer_bytes), detail)


def _size_figure(subject: Subject) -> Figure:
    totals = subject.facts.totals
    values = {
        "float32": float(totals.transformer_bytes_float32),
        subject.facts.recipe.bits: float(totals.transformer_bytes),
    }
    shown = {name: size(value) for name, value in values.items()}
    finding = " against ".join(f"{shown[name]} in {name}" for name in reversed(values))
    return plots.bars("size", "Weights of the transformer", values, shown, finding)


def _medians(speed: Speed | None) -> dict[str, float]:
    return {t.name: t.seconds.median for t in speed.timings} if speed else {}


def _speed_tile(evidence: Evidence | None) -> Tile:
    medians = _medians(evidence.speed if evidence else None)
    label = "One denoising step"
    if LIBRARY not in medians:
        return Tile(label, "not measured", "", words=True)
    detail = ""
    if FLOAT in medians:
        detail = f"torch's float32 takes {milliseconds(medians[FLOAT])}"
        if evidence and is_busy(evidence.machine):
            detail += "; the machine was busy, so neither is reliable"
        else:
            ratio = medians[FLOAT] / medians[LIBRARY]
            detail = f"{ratio:.1f} times as fast: {detail}"
    return Tile(label, milliseconds(medians[LIBRARY]), detail)


def is_busy(machine: Machine | None) -> bool:
    """Whether others wanted the cores while times were measured, beyond our own threads."""
    return bool(machine and machine.load and machine.load > BUSY * machine.cores)


def _speed_figure(speed: Speed) -> Figure:
    medians = _medians(speed)
    shown = {name: milliseconds(value) for name, value in medians.items()}
    finding = "median " + ", ".join(f"{name} {text}" for name, text in shown.items())
    return plots.bars("speed", "Time of a denoising step", medians, shown, finding)


def _peaks(memory: tuple[Memory, ...]) -> dict[str, int]:
    return {one.name: one.peak_bytes for one in memory}


def _memory_tile(memory: tuple[Memory, ...]) -> Tile:
    peaks = _peaks(memory)
    label = "Memory of the transformer"
    if LIBRARY not in peaks:
        return Tile(label, "not measured", "", words=True)
    detail = f"torch's float32 takes {size(peaks[FLOAT])}" if FLOAT in peaks else ""
    return Tile(label, size(peaks[LIBRARY]), detail)


def _memory_figure(memory: tuple[Memory, ...]) -> Figure:
    peaks = {name: float(value) for name, value in _peaks(memory).items()}
    shown = {name: size(value) for name, value in peaks.items()}
    finding = "added " + ", ".join(f"{name} {text}" for name, text in shown.items())
    return plots.bars("memory", "Memory of loading and one denoising step", peaks, shown, finding)


def _ratio(value: float, reference: float | None) -> Cell:
    return number(value / reference, f"{value / reference:.2f}") if reference else number(None)


def _size_rows(subject: Subject) -> list[Row]:
    totals, files = subject.facts.totals, subject.facts.own_files
    whole = float(totals.transformer_bytes_float32)
    parts: dict[str, int] = {}
    for name, file in files.items():
        folder = name.partition("/")[0] if "/" in name else "settings"
        parts[folder] = parts.get(folder, 0) + file.bytes
    what = plain("weights, transformer")
    return [
        (what, plain("float32"), nbytes(int(whole)), _ratio(whole, whole), plain("")),
        (
            what,
            plain(subject.facts.recipe.bits),
            nbytes(totals.transformer_bytes),
            _ratio(totals.transformer_bytes, whole),
            plain(f"{totals.bits_per_weight:.2f} bits per quantized weight"),
        ),
        *(
            (plain(f"on disk, {folder}"), plain("bundle"), nbytes(held), number(None), plain(""))
            for folder, held in {**parts, "whole bundle": sum(parts.values())}.items()
        ),
    ]


def _speed_rows(speed: Speed | None) -> list[Row]:
    reference = _medians(speed).get(FLOAT)
    rows: list[Row] = []
    for t in speed.timings if speed else ():
        seconds = t.seconds
        low, high = (1000 * value for value in (seconds.low, seconds.high))
        rows.append(
            (
                plain("denoising step"),
                plain(t.name),
                number(seconds.median, milliseconds(seconds.median)),
                _ratio(seconds.median, reference),
                plain(f"quartiles {low:.3g} to {high:.3g} ms, {t.rounds} rounds"),
            )
        )
    return rows


def _memory_rows(memory: tuple[Memory, ...]) -> list[Row]:
    reference = _peaks(memory).get(FLOAT)
    return [
        (
            plain("memory, peak added"),
            plain(one.name),
            nbytes(one.peak_bytes),
            _ratio(one.peak_bytes, reference),
            plain(f"{size(one.loaded_bytes)} of it by loading"),
        )
        for one in memory
    ]


def _note(subject: Subject) -> str:
    evidence = subject.evidence
    if evidence is None or evidence.machine is None:
        return "Sizes are counted from shapes and formats."
    parts = ["Sizes are counted from shapes and formats."]
    machine, speed = evidence.machine, evidence.speed
    if speed:
        parts.append(
            f"Times are medians of interleaved rounds, batch {speed.batch}, {speed.tokens} text "
            f"tokens, on {speed.threads} threads with {speed.isa} kernels."
        )
        parts += [f"{name}: {reason}." for name, reason in speed.absent.items()]
    if evidence.memory:
        parts.append(
            "Memory is what loading and one step add to the resident memory of a fresh process "
            "that has imported its packages."
        )
    if is_busy(machine):
        parts.append("The machine was busy with other work: times are unreliable, measure again.")
    cores = "core" if machine.cores == 1 else "cores"
    load = "" if machine.load is None else f", load {machine.load:.1f} in the minute before"
    parts.append(f"Machine: {machine.cores} {cores} of {machine.cpu}, {machine.system}{load}.")
    return " ".join(parts)
