"""The CUDA kernels, from the source that ships, on an emulated GPU: bit for bit the definitions.

Nothing here ran on a GPU: what the emulation cannot show, such as a wrong instruction's name, is
left to the compiler and to a machine that has one. tools/random_gpu_cases.py runs more random cases.
"""

from __future__ import annotations

import ctypes
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_gpu_cases
from emulated_gpu import PATHS, EmulatedGpu, Guarded
from gpu_cases import (
    WIDE_WEIGHTS,
    assert_same_bits,
    attention_case,
    linear_case,
    rows_of_all_kinds,
)
from gpu_mutants import MUTANTS, compile_mutants

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.numbers.hadamard import hadamard

pytestmark = [
    pytest.mark.skipif(
        sys.platform == "win32" or shutil.which("c++") is None, reason="needs a C++ compiler"
    ),
    pytest.mark.filterwarnings("ignore:(invalid|overflow):RuntimeWarning"),
]


@pytest.fixture(scope="module")
def gpu(emulated_kernels: Path) -> EmulatedGpu:
    return EmulatedGpu(emulated_kernels)


@pytest.mark.parametrize("name", FORMATS)
def test_quantize(gpu: EmulatedGpu, name: str) -> None:
    fmt, rng = FORMATS[name], np.random.default_rng(0)
    sizes = [(19, 70, None), (10, 1, None), (9, 300, None), (7, 65, 16), (2, 1030, 520)]
    for rows, k, group in sizes:
        x = rows_of_all_kinds(rows, k, rng)
        for found, wanted in zip(
            gpu.quantize(x, fmt, group), numerics.quantize(x, fmt, group), strict=True
        ):
            assert_same_bits(found, wanted)


def test_candidates_of_a_long_group(gpu: EmulatedGpu) -> None:
    """A warp sums all rounding errors of a group, however long it is."""
    fmt = FORMATS["e2m3"]
    candidates = [float(v) for v in fmt.lesser_limits[:3]]
    x = rows_of_all_kinds(19, 600, np.random.default_rng(7))
    for found, wanted in zip(
        gpu.quantize(x, fmt, candidates=candidates),
        numerics.quantize(x, fmt, None, candidates),
        strict=True,
    ):
        assert_same_bits(found, wanted)


@pytest.mark.parametrize("act", ["int8", "e3m2"])
@pytest.mark.parametrize("weight", WIDE_WEIGHTS)
def test_linear_of_integers(gpu: EmulatedGpu, act: str, weight: str) -> None:
    for sizes, group in [((17, 9, 160), 128), ((5, 130, 70), 32)]:
        rng = np.random.default_rng(1)
        linear_case(gpu, rng, FORMATS[act], FORMATS[weight], sizes, group)


@pytest.mark.parametrize("sizes", [(129, 129, 290), (128, 128, 512), (33, 1, 1), (1, 257, 1152)])
def test_tile_edges(gpu: EmulatedGpu, sizes: tuple[int, int, int]) -> None:
    for group in (32, 128, 2048):
        linear_case(gpu, np.random.default_rng(2), FORMATS["e2m3"], FORMATS["e2m1"], sizes, group)


@pytest.mark.parametrize("k", [258, 259, 1024])
def test_the_largest_sums(gpu: EmulatedGpu, k: int) -> None:
    """On both sides of 2^22, below which sums are the last bits of a float."""
    fmt = FORMATS["int8"]
    codes = np.full((2, k), np.nanargmax(fmt.grid), np.uint8)
    codes[1] = np.nanargmin(fmt.grid)
    q, one = np.full((3, k), 127, np.int8), np.ones((3, 1), np.float32)
    steps, bias = np.ones((2, 1), np.float32), np.zeros(2, np.float32)
    wanted = numerics.linear(q, one, numerics.decode(codes, fmt), steps, bias, k)
    assert_same_bits(gpu.linear(q, one, codes, fmt, steps, bias, k), wanted)


def test_multipliers_of_runs_that_are_no_whole_steps(gpu: EmulatedGpu) -> None:
    formats = FORMATS["int8"], FORMATS["int4"]
    linear_case(gpu, np.random.default_rng(8), *formats, (5, 20, 128), 32, 17, "multiplied")


LINEARS_OF_PATHS: dict[str, list[Any]] = {
    "decoded": [
        (("int8", "e2m1"), (17, 130, 300), 256),
        (("e2m3", "int4"), (130, 9, 292), 64, None, "multiplied"),
        (("int6", "e1m2"), (5, 9, 200), 200, None, "signs"),
    ],
    "shared": [
        (("int8", "e2m1"), (2, 130, 1030), 128),  # a run a block, or several
        (("e2m3", "e2m1"), (2, 9, 1500), 96, 32),  # groups of activations
        (("e2m3", "int4"), (3, 9, 1000), 96, None, "multiplied"),  # one run, cut within groups
        (("int8", "int8"), (3, 9, 600), 600),
        (("e3m2", "e2m1"), (3, 9, 1700), 128),
    ],
}
"""Formats, and what `linear_case` takes, of the ways that need scratch memory."""


@pytest.mark.parametrize("path", LINEARS_OF_PATHS)
def test_ways_of_linear(gpu: EmulatedGpu, path: str) -> None:
    run_case_of(gpu, path, 0)
    gpu.path = ""


def test_the_way_that_is_chosen(gpu: EmulatedGpu) -> None:
    for gpu.arch, sizes, path in [
        (86, (1024, 1, 32), "direct"),
        (90, (1024, 1, 32), "decoded"),
        (80, (1023, 1, 32), "direct"),
        (80, (33, 1, 2048), "direct"),
        (80, (2, 1, 2048), "shared"),
        (80, (32, 1, 2048), "direct"),  # more traffic of sums than of weights
        (80, (2, 1, 1920), "direct"),
    ]:
        linear_case(gpu, np.random.default_rng(9), FORMATS["int8"], FORMATS["e2m1"], sizes, 128)
        assert (sizes, gpu.taken) == (sizes, path)


def test_empty_inputs(gpu: EmulatedGpu) -> None:
    for sizes in [(0, 5, 32), (5, 0, 32)]:
        for act in (FORMATS["int8"], None):
            linear_case(gpu, np.random.default_rng(3), act, FORMATS["e2m1"], sizes, 32)


@pytest.mark.parametrize("name", ["e2m1", "int8", "e3m2", "e3m4"])
@pytest.mark.parametrize("sizes", [(2, 17, 40, 2, 72), (1, 65, 257, 1, 64), (1, 3, 600, 1, 129)])
def test_attention(gpu: EmulatedGpu, name: str, sizes: tuple[int, int, int, int, int]) -> None:
    for mask in ("", "infinite"):
        attention_case(gpu, np.random.default_rng(4), FORMATS[name], sizes, mask)


@pytest.mark.parametrize("mask", ["all", "first tiles", "nan", "finite"])
def test_masks(gpu: EmulatedGpu, mask: str) -> None:
    attention_case(gpu, np.random.default_rng(5), FORMATS["e2m3"], (2, 9, 530, 2, 24), mask)


def test_attention_of_no_queries(gpu: EmulatedGpu) -> None:
    attention_case(gpu, np.random.default_rng(6), FORMATS["int8"], (1, 0, 3, 2, 64))
    attention_case(gpu, np.random.default_rng(6), FORMATS["int8"], (0, 3, 3, 2, 64))


@pytest.mark.parametrize(
    ("operator", "cases"), [("quantize", 30), ("linear", 50), ("attention", 20)]
)
def test_random_cases(
    gpu: EmulatedGpu, operator: str, cases: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert random_gpu_cases.run(gpu, operator, range(cases)) == 0
    assert capsys.readouterr().out == ""


def test_a_case_that_differs_is_told(
    gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(numerics, "linear", lambda q, s, w, *rest: np.ones((len(q), len(w)), "f4"))
    assert random_gpu_cases.run(gpu, "linear", range(3, 4)) == 1
    assert "linear, seed 3: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"moved": 2}, "an access whose address is no multiple of its size"),
        ({"shared": 4 * 4096 - 4}, "an access beyond shared memory"),
    ],
)
def test_accesses_that_a_gpu_refuses(gpu: EmulatedGpu, given: dict[str, int], said: str) -> None:
    x = np.ones((4, 1024), np.float32)
    assert_same_bits(gpu.hadamard(x, 1024), hadamard(x, 1024))
    with pytest.raises(AssertionError, match=said):
        gpu.hadamard(x, 1024, **given)


@pytest.mark.parametrize("alignment", [1, 16, 256])
def test_arrays_are_aligned_to_no_more_than_is_said(alignment: int) -> None:
    for size in (1, 4095, 4096, 4097):
        address = Guarded(np.zeros(size, np.int8), alignment).address
        assert address & -address == alignment


@pytest.fixture(scope="module")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> EmulatedGpu:
    return EmulatedGpu(compile_mutants(tmp_path_factory.mktemp("mutants")))


def run_case_of(gpu: EmulatedGpu, operator: str, seed: int) -> None:
    """A case that shows the faults of an operator's kernels."""
    rng = np.random.default_rng(seed)
    gpu.seed, gpu.path = seed, ""
    if operator == "quantize":
        x = rows_of_all_kinds(10, 600, rng)
        found, wanted = gpu.quantize(x, FORMATS["int8"]), numerics.quantize(x, FORMATS["int8"])
        assert_same_bits(found[0], wanted[0])
    elif operator == "plain":
        linear_case(gpu, rng, None, FORMATS["e2m1"], (70, 20, 100), 50)
    elif operator == "rotate":
        x = rng.standard_normal((9, 128 + 24)).astype(np.float32)
        assert_same_bits(gpu.hadamard(x, 128), hadamard(x, 128))
    elif operator == "linear":
        linear_case(gpu, rng, FORMATS["int8"], FORMATS["e2m1"], (40, 20, 1024), 256)
        linear_case(
            gpu, rng, FORMATS["e2m3"], FORMATS["int4"], (9, 20, 128), 64, None, "multiplied"
        )
        linear_case(gpu, rng, FORMATS["e3m2"], FORMATS["e2m1"], (9, 20, 128), 64)
        gpu.alignment = 1
        linear_case(gpu, rng, FORMATS["int8"], FORMATS["e2m1"], (9, 20, 128), 128)
        gpu.alignment = 16
    elif operator in PATHS:
        gpu.path = operator
        for formats, *given in LINEARS_OF_PATHS[operator]:
            linear_case(gpu, rng, *(FORMATS[name] for name in formats), *given)
            assert gpu.taken == operator
    else:
        attention_case(gpu, rng, FORMATS["int8"], (1, 40, 300, 1, 64), "finite")
        attention_case(gpu, rng, FORMATS["e3m2"], (1, 20, 70, 1, 250))
        gpu.alignment = 1
        attention_case(gpu, rng, FORMATS["int8"], (1, 3, 3, 1, 64))
        gpu.alignment = 16


def fault_of(gpu: EmulatedGpu, name: str, seed: int) -> str:
    """What `run_case_of` says of a mutant; empty: nothing."""
    gpu.alignment = 16
    try:
        run_case_of(gpu, name.split(":")[0], seed)
    except AssertionError as error:
        return str(error) or "differs"
    return ""


def test_the_emulation_shows_faults(mutants: EmulatedGpu) -> None:
    chosen = ctypes.c_int.in_dll(mutants.library, "fp4dit_mutant")
    for operator in ("quantize", "plain", "rotate", "linear", "attention", "decoded", "shared"):
        run_case_of(mutants, operator, 0)
    missed = []
    for chosen.value, (name, mutant) in enumerate(MUTANTS.items(), 1):
        if not mutant.race and not any(fault_of(mutants, name, seed) for seed in range(6)):
            missed.append(name)
    assert not missed


def test_races_are_told_in_whatever_order_threads_run(mutants: EmulatedGpu) -> None:
    """Also in the one that gives the right values."""
    chosen = ctypes.c_int.in_dll(mutants.library, "fp4dit_mutant")
    check = ctypes.c_int.in_dll(mutants.library, "fp4dit_check_races")
    hidden = []
    for chosen.value, (name, mutant) in enumerate(MUTANTS.items(), 1):
        if not mutant.race:
            continue
        for seed in range(3):
            assert "a race at byte" in fault_of(mutants, name, seed), (name, seed)
        check.value = 0
        hidden += [] if fault_of(mutants, name, 0) else [name]
        check.value = 1
    assert {
        "linear: waits for too little",
        "attention: no barrier before the only chunk",
    } <= set(hidden)
