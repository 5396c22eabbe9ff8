"""Options of an export that say where it runs, and with how much."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fp4dit_onnx.exporting.options import MACHINE, Option
from fp4dit_onnx.system import devices

__all__ = ["MachineOptions"]


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Each field's option says what it is."""

    work: Annotated[
        Path | None,
        Option(
            "Folder for recorded activations and finished blocks, from which a killed run resumes; "
            "by default OUTPUT.calibration. Removed when the bundle is complete.",
            MACHINE,
            unit="DIR",
        ),
    ] = None
    restart: Annotated[
        bool, Option("Discard what a killed run left in the work folder.", MACHINE)
    ] = False
    max_ram: Annotated[
        float,
        Option(
            "Memory limit for recorded activations, for quantizing one layer, and for each network "
            "of the float pipeline: larger ones read their blocks when they run.",
            MACHINE,
            unit="GiB",
            scale=2**30,
        ),
    ] = 2 * 2**30
    max_vram: Annotated[
        float,
        Option(
            "Limit for what calibration keeps on the device, half for a network's weights and half for "
            "samples: a network that takes more has its blocks brought there one by one. 0 takes "
            "half of what is free for the weights.",
            MACHINE,
            unit="GiB",
            scale=2**30,
        ),
    ] = 0
    executor: Annotated[
        str,
        Option(
            "Where blocks are rounded: local, one after the other in this process; ray or "
            "ray=HOST:PORT, on the machines of a Ray cluster, where they are trained with --inputs "
            "parallel. The result is the same.",
            MACHINE,
            unit="WHERE",
        ),
    ] = "local"
    device: Annotated[
        str,
        Option(
            "Where torch calibrates: it encodes texts, samples, trains and measures there. cpu, cuda, "
            "mps or xpu, or one of several, such as cuda:1; auto is the first accelerator that torch "
            "finds, else the CPU.",
            MACHINE,
            unit="DEVICE",
        ),
    ] = devices.AUTO
    precision: Annotated[
        str,
        Option(
            "Type in which torch runs the float pipeline for calibration; sums, trained parameters and "
            "rounding are float32 either way.",
            MACHINE,
            unit="TYPE",
            choices=devices.PRECISIONS,
        ),
    ] = devices.PRECISIONS[0]
