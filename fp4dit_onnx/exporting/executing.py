"""Where the units of a calibration are solved, as a request says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fp4dit_onnx.calibration.methods import PARALLEL, SEQUENTIAL, Method
from fp4dit_onnx.calibration.stages import INPUTS
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.system.executors import LOCAL, Executor, Need

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.evidence import Parts
    from fp4dit_onnx.calibration.work import Work
    from fp4dit_onnx.checkpoint.checkpoint import Component
    from fp4dit_onnx.exporting.request import ExportRequest
    from fp4dit_onnx.network.network import Network
    from fp4dit_onnx.system.progress import Reporter

__all__ = ["check_executor", "executor_of"]

HERE, RAY = "local", "ray"
WEIGHT_BYTES = 64
"""Memory that a weight takes while its rounding is trained: itself, its neighbours on the grid, the
parameter, its gradient and the optimizer's two moments, and what one step makes of them."""


def check_executor(text: str, method: Method) -> None:
    """Raise UsageError where an executor is unknown, or has nothing to do under a method."""
    kind, equals, address = text.partition("=")
    if (kind != RAY or (equals and not address)) and text != HERE:
        raise UsageError(
            f"executor {text!r}: expected {HERE}, {RAY} or {RAY}=HOST:PORT, the head of a cluster"
        )
    if text == HERE:
        return
    if not method.needs_data:
        raise UsageError(
            f"executor {text}: method {method.name} looks at weights alone, so there is nothing to "
            f"spread over machines: expected --executor {HERE}"
        )
    if method.needs(INPUTS) and method.data.inputs == SEQUENTIAL:
        raise UsageError(
            f"executor {text}: with --inputs {SEQUENTIAL} every block waits for the one before it, so "
            f"one machine alone would work: expected --inputs {PARALLEL}"
        )


@contextmanager
def executor_of(
    request: ExportRequest,
    part: Component,
    network: Network,
    work: Work | None,
    reporter: Reporter,
) -> Iterator[tuple[Executor, Parts]]:
    """What solves the units of a calibration, and what gives it the parts of the network.

    Args:
        request: names the executor.
        part: of the checkpoint, the network's.
        network: to be calibrated.
        work: of the calibration.
        reporter: told what was found.

    Raises:
        UsageError: a device by its number; see `ray_cluster.connected` too.
    """
    if request.executor == HERE or work is None:
        yield LOCAL, network
        return
    import torch

    from fp4dit_onnx.network.stored import StoredParts
    from fp4dit_onnx.system.ray_cluster import connected

    where = network.execution
    if where.device.index is not None:
        raise UsageError(
            f"device {where.device} with executor {request.executor}: each machine has a number of its "
            f"own for what Ray gives a call: expected --device {where.device.type}"
        )
    parts = StoredParts.of(part, where)
    largest = max(
        sum(p.numel() for p in network.module.get_submodule(name).parameters())
        for name in network.blocks
    )
    need = Need(cpus=torch.get_num_threads(), memory=int(request.max_ram) + WEIGHT_BYTES * largest)
    address = request.executor.partition("=")[2] or None
    files = {work.manifest, *(info.file for info in parts.part.tensors.values())}
    with connected(address, need, sorted(files), reporter.note) as cluster:
        yield cluster, parts
