"""Tables of layers and tensors: those of the same place in every block make one row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

from fp4dit_onnx.bundle.manifest import Layer
from fp4dit_onnx.commands.output import decibels, print_line, print_table
from fp4dit_onnx.numbers.compare import mean
from fp4dit_onnx.report.layer_names import kind_of
from fp4dit_onnx.system.texts import size

__all__ = [
    "LayerGroup",
    "by_kind",
    "group_layers",
    "print_attention",
    "print_layers",
]

T = TypeVar("T")
SHOWN = 2
"""Kinds of layers in a line."""


@dataclass(frozen=True)
class LayerGroup:
    """Layers that differ in their block's number alone.

    Attributes:
        name: with ``*`` for the number.
        count: how many.
        formats: of weights and activations, as ``e2m1 / e2m3``.
        bytes: after, scales included.
        weights: how many numbers.
        weight_sqnr_db: mean over the layers; None where not measured.
        output_sqnr_db: mean over the layers; None where not measured.
    """

    name: str
    count: int
    formats: str
    bytes: int
    weights: int
    weight_sqnr_db: float | None
    output_sqnr_db: float | None


def by_kind(
    rows: Iterable[T], name_of: Callable[[T], str], properties: Callable[[T], tuple[object, ...]]
) -> list[tuple[str, list[T]]]:
    """Rows that differ in their block's number alone, under a name with ``*`` for it; sorted by name.

    Args:
        rows: of layers or tensors.
        name_of: the name of a row.
        properties: of a row, equal within a group.
    """
    all_rows = list(rows)
    kinds = kind_of(map(name_of, all_rows))
    groups: dict[tuple[str, tuple[object, ...]], list[T]] = {}
    for row in all_rows:
        groups.setdefault((kinds[name_of(row)], properties(row)), []).append(row)
    found = [(name, members) for (name, _), members in groups.items()]
    return sorted(found, key=lambda group: _natural(group[0]))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``blocks.2`` before ``blocks.10``."""
    return [(int(d or -1), text) for d, text in re.findall(r"(\d+)|(\D+)", name)]


def group_layers(rows: Iterable[Layer]) -> list[LayerGroup]:
    """Groups of the manifest's (or plan's) layer rows."""
    return [
        _group(name, members[0].formats, members)
        for name, members in by_kind(rows, attrgetter("name"), lambda row: (row.formats,))
    ]


def _group(name: str, formats: str, rows: list[Layer]) -> LayerGroup:
    return LayerGroup(
        name=name,
        count=len(rows),
        formats=formats,
        bytes=sum(row.bytes for row in rows),
        weights=sum(row.weights for row in rows),
        weight_sqnr_db=mean(row.weight_sqnr_db for row in rows),
        output_sqnr_db=mean(row.output_sqnr_db for row in rows),
    )


def print_layers(title: str, rows: Iterable[Layer]) -> None:
    """Print the groups and their sum, in 100 columns, and where tokens have scales of several groups."""
    all_rows = list(rows)
    total = _group("all", "", all_rows)
    columns = ["layer", ">count", "formats", ">size", ">bits"]
    if total.weight_sqnr_db is not None:
        columns += [">weight", ">output"]
        title += ": bits per weight, SQNR of weights and outputs in dB"
    cells = [_cells(group)[: len(columns)] for group in (*group_layers(all_rows), total)]
    print_table(title, columns, cells, footer=True)
    sizes = {row.activation_group_size for row in all_rows if row.activation_group_size}
    for of_token in sorted(sizes):
        named = [row for row in all_rows if row.activation_group_size == of_token]
        print_line(
            f"activations of {len(named)} layers: a scale per token and {of_token} inputs "
            f"({_shown(named)})"
        )
    for rank in sorted({row.branch for row in all_rows if row.branch}):
        beside = [row for row in all_rows if row.branch == rank]
        print_line(f"branches of rank {rank} beside {len(beside)} layers ({_shown(beside)})")
    constant = sum(row.largest is not None for row in all_rows)
    if constant:
        print_line(f"activations of {constant} layers: one constant scale, found at calibration")


def _shown(rows: Iterable[Layer]) -> str:
    """The first kinds of layers."""
    kinds = list(dict.fromkeys(kind_of(row.name for row in rows).values()))
    return ", ".join(kinds[:SHOWN]) + (", ..." if len(kinds) > SHOWN else "")


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
        size(group.bytes),
        f"{8 * group.bytes / group.weights:.2f}" if group.weights else "-",
        decibels(group.weight_sqnr_db).removesuffix(" dB"),
        decibels(group.output_sqnr_db).removesuffix(" dB"),
    )
