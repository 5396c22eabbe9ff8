"""The table that closes an export: layers of the same place in every block make one row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fp4dit_onnx.commands.output import decibels, print_line, print_table, size

__all__ = ["LayerGroup", "group_layers", "print_attention", "print_layers"]


@dataclass(frozen=True)
class LayerGroup:
    """Layers that differ in their block's number alone.

    Attributes:
        name: with ``*`` for the number.
        count: how many.
        formats: of weights and activations, as ``e2m1 / e2m3``.
        bytes_float32: before.
        bytes: after, scales included.
        weights: how many numbers.
        weight_sqnr_db: mean over the layers; None where not measured.
        output_sqnr_db: mean over the layers; None where not measured.
    """

    name: str
    count: int
    formats: str
    bytes_float32: int
    bytes: int
    weights: int
    weight_sqnr_db: float | None
    output_sqnr_db: float | None


def group_layers(rows: Iterable[Mapping[str, Any]]) -> list[LayerGroup]:
    """Groups of the manifest's (or plan's) layer rows, in order of appearance."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        name = re.sub(r"\.\d+\.", ".*.", row["name"], count=1)
        formats = f"{row['weight_format']} / {row['activation_format'] or 'float'}"
        groups.setdefault((name, formats), []).append(row)
    return [_group(name, formats, members) for (name, formats), members in groups.items()]


def _group(name: str, formats: str, rows: list[Mapping[str, Any]]) -> LayerGroup:
    return LayerGroup(
        name=name,
        count=len(rows),
        formats=formats,
        bytes_float32=sum(row["bytes_float32"] for row in rows),
        bytes=sum(row["bytes"] for row in rows),
        weights=sum(row["weights"] for row in rows),
        weight_sqnr_db=_mean(row.get("weight_sqnr_db") for row in rows),
        output_sqnr_db=_mean(row.get("output_sqnr_db") for row in rows),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def print_layers(title: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the groups and their sum."""
    all_rows = list(rows)
    groups = group_layers(all_rows)
    total = _group("all", "", all_rows)
    columns = ["layer", ">count", "formats", ">float32", ">quantized", ">bits a weight"]
    measured = total.weight_sqnr_db is not None
    if measured:
        columns += [">weight SQNR", ">output SQNR"]
    cells = [_cells(group)[: len(columns)] for group in (*groups, total)]
    print_table(title, columns, cells, footer=True)


def print_attention(attention: Mapping[str, str]) -> None:
    """Print one line about the attentions whose q, k and v are quantized; none for none."""
    if attention:
        counts = Counter(attention.values())
        parts = ", ".join(f"of {count} modules in {fmt}" for fmt, count in counts.items())
        print_line(f"attention: q, k, v {parts} per head and token")


def _cells(group: LayerGroup) -> tuple[object, ...]:
    return (
        group.name,
        group.count,
        group.formats,
        size(group.bytes_float32),
        size(group.bytes),
        f"{8 * group.bytes / group.weights:.2f}" if group.weights else "-",
        decibels(group.weight_sqnr_db),
        decibels(group.output_sqnr_db),
    )
