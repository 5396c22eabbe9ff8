"""Write ``fp4dit_onnx/web/js/families.json``: what the page reads of `fp4dit_onnx.families`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from generated_file import write_or_check

from fp4dit_onnx.families import FAMILIES, Family, InputSpec
from fp4dit_onnx.families.interface import TIMESTEPS

__all__ = ["render"]

TARGET = Path(__file__).resolve().parents[1] / "fp4dit_onnx" / "web" / "js" / "families.json"


def _input(spec: InputSpec) -> dict[str, Any]:
    source: Any = spec.source
    settings = source and {"kind": type(source).__name__, **asdict(source)}
    return {"name": spec.name, "dtype": spec.dtype, "dims": spec.dims, "source": settings}


def _family(family: Family) -> dict[str, Any]:
    return {
        "name": family.name,
        "pipelines": family.pipelines,
        "encoders": family.encoders,
        "optional": family.optional,
        "guidance": asdict(family.guidance),
        "latents": asdict(family.latents),
        "timestep": {
            "dtype": family.timestep.dtype,
            "divisor": family.time_divisor,
            "reversed_from": TIMESTEPS if family.reversed else None,
        },
        "inputs": [_input(spec) for spec in family.inputs],
    }


def render() -> str:
    """The text of ``families.json``: families that images are generated with, a line each."""
    found = [_family(family) for family in FAMILIES if family.generates]
    return "[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n"


if __name__ == "__main__":
    sys.exit(write_or_check(TARGET, render(), "fp4dit_onnx/families"))
