#!/usr/bin/env python3
"""Random cases of the CUDA kernels on the emulated GPU, compared bit for bit with their definitions.

``--cases N`` of each operator, from ``--first``, the seed of the first. A case that differs is printed
with its seed, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from emulated_gpu import PATHS, EmulatedGpu, compile_kernels  # noqa: E402
from gpu_cases import random_attention, random_linear, random_quantize  # noqa: E402

OPERATORS = {
    "quantize": random_quantize,
    "linear": random_linear,
    "attention": random_attention,
}


def run(gpu: EmulatedGpu, operator: str, seeds: range) -> int:
    """The number of cases that differ; each is printed."""
    failed = 0
    for seed in seeds:
        # A quarter begins at any byte, as a caller's own buffers may.
        gpu.seed, gpu.alignment = seed, 16 if seed % 4 else 1
        gpu.path = ("", *PATHS)[seed // 4 % (1 + len(PATHS))]
        try:
            with np.errstate(all="ignore"):
                OPERATORS[operator](gpu, np.random.default_rng(seed))
        except AssertionError as error:
            failed += 1
            print(f"{operator}, seed {seed}: {error}")
    gpu.seed, gpu.alignment, gpu.path = 1, 16, ""
    return failed


def main(arguments: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="of each operator")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    given = parser.parse_args(arguments)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        gpu = EmulatedGpu(compile_kernels(Path(folder) / "libkernels.so"))
        for operator in OPERATORS:
            start = time.monotonic()
            seeds = range(given.first, given.first + given.cases)
            found = run(gpu, operator, seeds)
            took = time.monotonic() - start
            print(f"{operator}: {given.cases} cases, {found} differ, {took:.0f} s", flush=True)
            failed += found
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
