"""Tables of a budget: what layers may have, and what they got."""

from __future__ import annotations

from collections.abc import Iterable

from fp4dit_onnx.bundle.calibration_notes import Spent
from fp4dit_onnx.bundle.manifest import Layer
from fp4dit_onnx.commands.output import print_line, print_table
from fp4dit_onnx.exporting.budget import PlannedBudget, precision

__all__ = ["print_budget", "print_spent"]


def print_budget(budget: PlannedBudget) -> None:
    """Print what an export will choose among, and by what."""
    rows = [(c.precision, c.layers, f"{c.bits:.3f}") for c in budget.choices]
    print_table(
        "Precisions to choose among: bits per weight, scales included",
        ("weights", ">layers", ">bits"),
        rows,
    )
    span = f"{budget.least_bits:.3f} to {budget.most_bits:.3f} bits per weight are possible"
    asked = (
        f"layers get at most {budget.target_bits:g} in all, where they save the most error per byte"
        if budget.target_bits
        else f"the fewest are taken that keep {budget.min_sqnr_db:g} dB of the guided prediction"
    )
    print_line(
        f"{span}; {asked}: each layer is rounded in each of its precisions, and the network runs with "
        "each layer alone to measure how much its error matters; sizes above are those without a budget"
    )


def print_spent(layers: Iterable[Layer], spent: Spent) -> None:
    """Print what layers got, and what was reached."""
    groups: dict[str, list[Layer]] = {}
    for row in layers:
        label = precision(row.weight_format, row.group_size, row.shape[1], row.scale_format)
        groups.setdefault(label, []).append(row)
    everything = sum(row.weights for rows in groups.values() for row in rows)
    cells = [
        (
            label,
            len(rows),
            f"{100 * sum(row.weights for row in rows) / everything:.1f} %",
            f"{8 * sum(row.bytes for row in rows) / sum(row.weights for row in rows):.3f}",
            f"{100 * sum(spent.shares.get(row.name, 0.0) for row in rows):.1f} %",
        )
        for label, rows in sorted(groups.items())
    ]
    print_table(
        "Precisions chosen: shares of all weights, bits per weight, shares of the expected error",
        ("weights", ">layers", ">of all", ">bits", ">error"),
        cells,
    )
    asked = (
        f"at most {spent.target_bits:g} asked for"
        if spent.target_bits
        else f"{spent.min_sqnr_db:g} dB asked for"
    )
    print_line(
        f"{spent.bits_per_weight:.3f} bits per weight, scales included, of {spent.least_bits:.3f} to "
        f"{spent.most_bits:.3f}; SQNR of the guided prediction {spent.sqnr_db:.1f} dB ({asked})"
    )
