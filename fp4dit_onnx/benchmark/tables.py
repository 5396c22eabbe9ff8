"""All backends of every kind of case, and choosing among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fp4dit_onnx.benchmark import attention, linear, step
from fp4dit_onnx.benchmark.backend import Backend
from fp4dit_onnx.errors import UsageError

__all__ = ["BASELINES", "OURS", "PEERS", "backends", "choose"]

PEERS: Mapping[str, tuple[Backend[Any], ...]] = {
    "linear": linear.PEERS,
    "attention": attention.PEERS,
    "step": step.PEERS,
}
"""Kind of case -> other backends."""

OURS: Mapping[str, Callable[[str], Backend[Any]]] = {
    "linear": linear.ours,
    "attention": attention.ours,
    "step": step.ours,
}
"""Kind of case -> instruction set -> this project's own backend."""

BASELINES: Mapping[str, str] = {
    "linear": "ort-float32",
    "attention": "ort-matmul-softmax",
    "step": "ort-float32",
}
"""Kind of case -> the backend that ratios are taken to: plain float32 in ONNX Runtime."""


def choose(what: str, wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names `wanted`, without repetition, in their order.

    Raises:
        UsageError: one is not among `known`.
    """
    for name in wanted:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")
    return tuple(dict.fromkeys(wanted))


def backends(
    kind: str, isas: Sequence[str], peers: Sequence[str] | None
) -> tuple[Backend[Any], ...]:
    """Backends for cases of `kind`: ours with each of `isas`, then peers as the table has them.

    Args:
        kind: of the case.
        isas: instruction sets of ours.
        peers: names; of another kind they are passed over. None is all that run by default.
    """
    chosen = [p for p in PEERS[kind] if (p.by_default if peers is None else p.name in peers)]
    return (*(OURS[kind](isa) for isa in isas), *chosen)
