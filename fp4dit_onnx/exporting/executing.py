"""Where the units of a calibration are solved, as a request says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fp4dit_onnx.calibration.methods import PARALLEL, SEQUENTIAL, Method
from fp4dit_onnx.calibration.stages import INPUTS
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.system.executors import HERE, LOCAL, Executor, place_of

if TYPE_CHECKING:
    from fp4dit_onnx.calibration.evidence import Parts
    from fp4dit_onnx.calibration.work import Work
    from fp4dit_onnx.checkpoint.checkpoint import Checkpoint
    from fp4dit_onnx.exporting.request import ExportRequest
    from fp4dit_onnx.network.network import Network
    from fp4dit_onnx.system.progress import Reporter

__all__ = ["check_executor", "executor_of"]


def check_executor(text: str, method: Method) -> None:
    """Raise UsageError where an executor is unknown, or has nothing to do under a method."""
    if not place_of(text).elsewhere:
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
    source: Checkpoint,
    network: Network,
    work: Work | None,
    reporter: Reporter,
) -> Iterator[tuple[Executor, Parts]]:
    """What solves the units of a calibration, and what gives it the parts of the network.

    Args:
        request: names the executor.
        source: of the pipeline.
        network: its transformer, to be calibrated.
        work: of the calibration.
        reporter: told what was found.

    Raises:
        UsageError: a device by its number; see `ray_cluster.connected` too.
    """
    place = place_of(request.executor)
    if not place.elsewhere or work is None:
        yield LOCAL, network
        return
    from fp4dit_onnx.calibration.reconstruct import training_bytes
    from fp4dit_onnx.network.stored import StoredParts
    from fp4dit_onnx.system.ray_cluster import connected

    where = network.execution
    parts = StoredParts.of(source.components["transformer"], where)
    largest = max(
        sum(training_bytes(p.numel()) for p in network.module.get_submodule(name).parameters())
        for name in network.blocks
    )
    need = where.need(int(request.max_ram) + largest)
    files = {work.manifest, *(info.file for info in parts.part.tensors.values())}
    for folder in (source.folder, *(part.folder for part in source.components.values())):
        files.update(path.absolute() for path in folder.glob("*.json"))
    with connected(place.address, need, sorted(files), reporter.note) as cluster:
        yield cluster, parts
