"""What a session takes of memory, stage by stage, measured in its own process.

This file is that process's program, too: it imports nothing that a session does not need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["GOAL_BYTES", "GOAL_FACTOR", "GOAL_SECONDS", "Target", "feed_of", "measure_memory"]

GOAL_FACTOR, GOAL_BYTES = 1.2, 100e6
"""Memory that a session may take: the model's bytes times the factor, and these."""
GOAL_SECONDS = 3.0
"""Time that loading it may take."""
ELEMENTS = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
TIMESTEP = 500.0
ROLLUP, STATUS = Path("/proc/self/smaps_rollup"), Path("/proc/self/status")


@dataclass(frozen=True)
class Target:
    """A model and how it is run.

    Attributes:
        model: ONNX file.
        sizes: size of each symbolic dimension.
        threads: of one operator.
        isa: kernels of the custom-op library, or None for a model that needs none.
        nbytes: of the model and its external data.
    """

    model: str
    sizes: Mapping[str, int]
    threads: int
    isa: str | None
    nbytes: int


def feed_of(inputs: Iterable[Any], sizes: Mapping[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    """Random values of a session's inputs: floats standard normal, masks ones, indices zero.

    Raises:
        UsageError: an axis has no known size, or an input is of no type known here.
    """
    import numpy as np

    from fp4dit_onnx.errors import UsageError

    random, feed = np.random.default_rng(0), {}
    for declared in inputs:
        unknown = [d for d in declared.shape if not isinstance(d, int) and d not in sizes]
        if unknown:
            raise UsageError(
                f"input {declared.name}: axis {unknown[0] or '?'} has no known size: expected a "
                f"number or a name, and its size with  --dim {unknown[0] or 'NAME'}=SIZE"
            )
        if declared.type not in ELEMENTS:
            raise UsageError(
                f"input {declared.name} is a {declared.type}: expected {', '.join(ELEMENTS)}"
            )
        shape = [d if isinstance(d, int) else sizes[d] for d in declared.shape]
        dtype = np.dtype(ELEMENTS[declared.type])
        if declared.name == "timestep":
            value = np.full(shape, TIMESTEP)
        elif dtype.kind == "f":
            value = random.standard_normal(shape)
        else:
            # A mask has an axis of its text, an index has not.
            value = np.full(shape, len(shape) > 1)
        feed[declared.name] = value.astype(dtype)
    return feed


def memory_now() -> dict[str, int]:
    """This process's memory in bytes: resident, proportional, anonymous, file-backed, peak."""
    rollup = _kibibytes(ROLLUP)
    return {
        "rss": rollup["Rss"],
        "pss": rollup["Pss"],
        "anonymous": rollup["Anonymous"],
        "file": rollup["Rss"] - rollup["Anonymous"],
        "peak": _kibibytes(STATUS)["VmHWM"],
    }


def _kibibytes(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {w[0].rstrip(":"): 1024 * int(w[1]) for w in lines if w[2:] == ["kB"]}


def probe(target: Target) -> None:
    """Print this process's memory at each stage of a session and the seconds of loading, as JSON.

    For a fresh process.
    """
    stages = {"start": memory_now()}
    import onnxruntime  # noqa: F401  # a part of the stage

    from fp4dit_onnx.runtime.session import session

    stages["imports"] = memory_now()
    begin = time.perf_counter()
    loaded = session(target.model, library=target.isa is not None, threads=target.threads)
    seconds = time.perf_counter() - begin
    stages["load"] = memory_now()
    loaded.run(None, feed_of(loaded.get_inputs(), target.sizes))
    stages["run"] = memory_now()
    print(json.dumps({"stages": stages, "load_seconds": seconds}))


def measure_memory(target: Target) -> dict[str, Any] | None:
    """What `probe` finds in its own process; None where the system does not tell."""
    if not ROLLUP.is_file():
        return None
    from fp4dit_onnx.errors import UsageError

    command = [sys.executable, __file__, json.dumps(asdict(target))]
    env = {**os.environ, **({"FP4DIT_ISA": target.isa} if target.isa else {})}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"{target.model} does not run: {last}")
    found: dict[str, Any] = json.loads(done.stdout)
    stages = found["stages"]
    before, after = stages["imports"]["rss"], stages["load"]["rss"]
    allowed = GOAL_FACTOR * target.nbytes + GOAL_BYTES
    return {
        **found,
        "model_bytes": target.nbytes,
        "times_model": (after - before) / target.nbytes,
        "before_bytes": before,
        "allowed_bytes": allowed,
        "within": after <= allowed,
    }


def main() -> None:
    """Be the process that is measured; its one argument is a `Target` as JSON."""
    try:
        probe(Target(**json.loads(sys.argv[1])))
    except Exception as error:
        from fp4dit_onnx.errors import Fp4DitError

        if not isinstance(error, Fp4DitError):
            raise
        sys.exit(str(error))


if __name__ == "__main__":
    main()
