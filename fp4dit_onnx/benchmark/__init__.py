"""Benchmarks: this project's kernels against other CPU libraries on the same computation.

A *case* is one computation (`linear`, `attention`, `step`, `image`), a *backend* one way to carry it
out. Backends are entries of tables, timed in turns (`rounds`): loaded into one process, or, of
images, each turn in a process of its own (`image_rounds`).
"""

from __future__ import annotations

from fp4dit_onnx.benchmark.attention import AttentionCase
from fp4dit_onnx.benchmark.backend import Absent, Backend, Loaded
from fp4dit_onnx.benchmark.case import Case, parse_sizes
from fp4dit_onnx.benchmark.image import ImageCase
from fp4dit_onnx.benchmark.image_rounds import ImageOutcome, ImageReport, run_image
from fp4dit_onnx.benchmark.linear import DEFAULT_SHAPES, LinearCase
from fp4dit_onnx.benchmark.machine import Machine
from fp4dit_onnx.benchmark.run import Outcome, Report, Settings, run_case, together
from fp4dit_onnx.benchmark.step import StepCase
from fp4dit_onnx.benchmark.tables import BASELINES, PEERS, backends, choose

__all__ = [
    "BASELINES",
    "DEFAULT_SHAPES",
    "PEERS",
    "Absent",
    "AttentionCase",
    "Backend",
    "Case",
    "ImageCase",
    "ImageOutcome",
    "ImageReport",
    "LinearCase",
    "Loaded",
    "Machine",
    "Outcome",
    "Report",
    "Settings",
    "StepCase",
    "backends",
    "choose",
    "parse_sizes",
    "run_case",
    "run_image",
    "together",
]
