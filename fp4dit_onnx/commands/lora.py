"""``fp4dit-onnx lora``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.slots import slots_of
from fp4dit_onnx.commands.output import print_json, print_line
from fp4dit_onnx.commands.parameters import Json, Overwrite
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.options import INPUT, OUTPUT, Option
from fp4dit_onnx.system.outputs import check_file, written_whole

__all__ = ["run"]

ACTIONS = ("convert",)


def run(
    action: Annotated[
        str, Option("What to do.", INPUT, unit="ACTION", choices=ACTIONS, positional=True)
    ],
    file: Annotated[
        Path,
        Option(
            "LoRA in safetensors, with the names of diffusers, peft or kohya.",
            INPUT,
            unit="FILE",
            positional=True,
        ),
    ],
    bundle: Annotated[
        Path,
        Option("Bundle whose slots it is to fill.", INPUT, unit="BUNDLE", flags=("--bundle",)),
    ],
    output: Annotated[
        Path,
        Option("The adapter file to write.", OUTPUT, unit="FILE", flags=("--output", "-o")),
    ],
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a LoRA an adapter of ONNX Runtime, for a bundle with slots."""
    if action not in ACTIONS:
        raise UsageError(f"lora {action}: expected {' or '.join(ACTIONS)}")
    from fp4dit_onnx.runtime.adapters import ADAPTER_SUFFIX, write_adapter
    from fp4dit_onnx.runtime.lora_files import adapter_of

    if output.suffix != ADAPTER_SUFFIX:
        raise UsageError(f"output {output}: expected a name ending in {ADAPTER_SUFFIX}")
    check_file(output, overwrite=overwrite)
    slots = slots_of(Bundle.open(bundle).transformer)
    tensors = adapter_of(file, slots)
    with written_whole(output, overwrite=overwrite) as partial:
        write_adapter(tensors, partial)
    if json:
        print_json({"adapter": str(output), "layers": len(tensors) // 2})
        return
    print_line(f"{output}: {len(tensors) // 2} layers")
