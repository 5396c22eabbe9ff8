"""The process in which one backend loads its models and makes one image.

    python -m fp4dit_onnx.benchmark.image_process ORDER.json

It writes what it measured to the file that the order names, or why it could not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp4dit_onnx.benchmark.backend import reason_of
from fp4dit_onnx.benchmark.image import DECODER, ENCODER, LOAD, STEP, ImageCase, Painter
from fp4dit_onnx.benchmark.stopwatch import Stopwatch
from fp4dit_onnx.benchmark.tables import backends
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import GIVEN, read_json, write_text
from fp4dit_onnx.system.resources import peak_rss

__all__ = ["PREPARE", "main"]

PREPARE, TOTAL, REST = "prepare", "total", "rest"


def _measured(case: ImageCase, order: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds by stage and the peak of memory; writes the image."""
    name, isas, threads = order["backend"], order["isas"], int(order["threads"])
    (backend,) = (one for one in backends(case.kind, isas, [name]) if one.name == name)
    if order.get(PREPARE):
        if backend.prepare is not None:
            backend.prepare(case)
        return {}
    loading = Stopwatch()
    with loading.stage(LOAD):
        painter = backend.load(case, threads)
    assert isinstance(painter, Painter)
    with painter.watch.stage(REST):
        painter.run().save(order["image"])  # type: ignore[attr-defined]
    found = {name: sum(values) for name, values in painter.watch.seconds.items()}
    load = found.pop(LOAD, 0.0) + sum(loading.seconds[LOAD])
    steps = painter.watch.seconds.get(STEP, [])
    return {
        "load": load,
        "seconds": sum(found.values()),
        "stages": {stage: found.get(stage, 0.0) for stage in (ENCODER, STEP, DECODER, REST)},
        "calls": len(steps),
        "peak_bytes": peak_rss(),
    }


def main(arguments: list[str]) -> None:
    """Carry out an order."""
    order = read_json(Path(arguments[0]), "what an image is made of", GIVEN)
    try:
        found = _measured(ImageCase.from_json(order["case"]), order)
    except Exception as cause:  # a peer may fail in any way: it is named, the others run
        found = {"refused": reason_of(cause), "usage": isinstance(cause, UsageError)}
    write_text(Path(order["result"]), json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
