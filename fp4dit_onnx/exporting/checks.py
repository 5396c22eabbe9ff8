"""What is refused of a request before its plan is made."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from math import prod

from fp4dit_onnx.calibration.stages.budget import MOST_BITS, MOST_SQNR_DB
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import CheckpointError, MissingExtraError, UsageError
from fp4dit_onnx.exporting.components import absent_parts
from fp4dit_onnx.exporting.executing import check_executor
from fp4dit_onnx.exporting.request import COMPONENTS, ExportRequest
from fp4dit_onnx.report import writing as report_writing
from fp4dit_onnx.spec.recipe import FORMS
from fp4dit_onnx.system.outputs import check_file
from fp4dit_onnx.values import checked_seed, real, seconds_of, whole

__all__ = ["check_choices", "check_packages", "check_pipeline", "check_ram"]

TORCH_PACKAGES = ("torch", "diffusers", "transformers", "onnx_graphsurgeon", "onnxscript")
SMALLEST_RAM = 2**26
LAYER_COPIES = 6
"""Memory that rounding a layer from its file takes, in copies of its weight in float32: measured up to
5 on Flux, whose largest is 189 MB."""
SMALLEST_BUDGET = 0.1
"""Bits per weight, or dB."""


def check_choices(request: ExportRequest) -> None:
    """Raise UsageError where a value of a request cannot be."""
    for what, most in (("target_bits", MOST_BITS), ("min_sqnr", MOST_SQNR_DB)):
        if getattr(request, what) is not None:
            real(what, getattr(request, what), SMALLEST_BUDGET, most)
    check_executor(request.executor, request.resolved_method())
    if request.components not in COMPONENTS:
        raise UsageError(
            f"unknown components {request.components!r}: expected {' or '.join(COMPONENTS)}"
        )
    if request.resolved_form not in FORMS:
        raise UsageError(f"unknown form {request.form!r}: expected one of {', '.join(FORMS)}")
    for what in ("calibration_prompts", "calibration_size", "steps", "iterations", "samples"):
        value = getattr(request, what)
        if value is not None:
            whole(what, value, 1)
    if request.time is not None:
        seconds_of(request.time)
        if not request.resolved_method().needs_data:
            raise UsageError(
                f"time {request.time}: method {request.method} uses no calibration data, and takes as "
                "long as it takes: expected a method that calibrates, such as fp4dit or tuned"
            )
    for what in ("group_size", "activation_group_size"):
        if getattr(request, what) is not None:
            whole(what, getattr(request, what), 8)
    real("max_ram in bytes", request.max_ram, SMALLEST_RAM)
    real("max_vram in bytes", request.max_vram, 0)
    checked_seed(request.seed)
    for path in (request.state, request.save_recipe):
        if path is not None:
            check_file(path, overwrite=request.overwrite)


def check_pipeline(request: ExportRequest) -> None:
    """Refuse a method that samples with parts that are not there."""
    try:
        source = open_checkpoint(request.model)
        absent = absent_parts(source)
        missing = f"{source.folder / 'model_index.json'} names no {absent}" if absent else ""
    except CheckpointError as error:
        missing = str(error)
    if missing:
        raise UsageError(
            f"method {request.method} needs data and samples with the whole pipeline, but {missing}; "
            "rounding to nearest needs the transformer alone: --method fp-rtn"
        )


def check_packages(*, report: bool) -> None:
    """Raise MissingExtraError where a package is absent; `report`: whether one is written."""
    for package in (*TORCH_PACKAGES, *(report_writing.PACKAGES if report else ())):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package.replace("_", "-"), "export")


def check_ram(request: ExportRequest, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a limit that the largest layer alone exceeds."""
    largest = max(sizes, key=lambda name: prod(sizes[name]), default=None)
    needed = LAYER_COPIES * 4 * prod(sizes[largest]) if largest else 0
    if needed > request.max_ram:
        raise UsageError(
            f"max RAM {request.max_ram / 2**30:.2f} GiB: layer {largest} of shape "
            f"{list(sizes[str(largest)])} alone takes about {needed / 2**30:.2f} while it is "
            "quantized; give more with --max-ram"
        )
