"""All backends of every kind of case, and choosing among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fp4dit_onnx.benchmark import attention, image, linear, step
from fp4dit_onnx.benchmark.backend import Backend
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.providers import ON_CPU, Placement

__all__ = ["BASELINES", "OURS", "PEERS", "backends", "choose"]

ORT = "onnxruntime"

PEERS: Mapping[str, tuple[Backend[Any], ...]] = {
    "linear": linear.PEERS,
    "attention": attention.PEERS,
    "step": step.PEERS,
    "image": image.PEERS,
}
"""Kind of case -> other backends."""

OURS: Mapping[str, Callable[[str], Backend[Any]]] = {
    "linear": linear.ours,
    "attention": attention.ours,
    "step": step.ours,
    "image": image.ours,
}
"""Kind of case -> instruction set -> this project's own backend."""

BASELINES: Mapping[str, str] = {
    "linear": "ort-float32",
    "attention": "ort-matmul-softmax",
    "step": "ort-float32",
    "image": "ort-float32",
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
    kind: str, isas: Sequence[str], peers: Sequence[str] | None, placed: Placement = ON_CPU
) -> tuple[Backend[Any], ...]:
    """Backends for cases of `kind`: ours with each of `isas`, then peers as the table has them.

    Args:
        kind: of the case.
        isas: instruction sets of ours; on another device than the CPU, its name.
        peers: names; of another kind they are passed over. None is all that run by default.
        placed: where sessions of ONNX Runtime run; other packages run on the CPU alone.
    """
    chosen = [p for p in PEERS[kind] if (p.by_default if peers is None else p.name in peers)]
    if not placed.on_cpu:
        reason = f"runs on the CPU, not on {placed.name}"
        chosen = [p if p.package == ORT else replace(p, absent=reason) for p in chosen]
    return (*(OURS[kind](isa) for isa in isas), *chosen)
