"""The CUDA kernels, from the source that ships, on an emulated GPU: bit for bit the definitions.

Nothing here ran on a GPU: what the emulation cannot show, such as a wrong instruction's name, is
left to the compiler and to a machine that has one.
"""

from __future__ import annotations

import shutil
import sys

import numpy as np
import numpy.typing as npt
import pytest
from emulated_gpu import EmulatedGpu, compile_kernels

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("c++") is None, reason="needs a C++ compiler"
)


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> EmulatedGpu:
    return EmulatedGpu(compile_kernels(tmp_path_factory.mktemp("gpu") / "libkernels.so"))


def assert_same_bits(found: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic]) -> None:
    """The same type, shape and bits; any NaN is like another."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if found.dtype == np.float32:
        found, wanted = (np.where(np.isnan(a), np.float32(np.nan), a) for a in (found, wanted))
        found, wanted = found.view(np.uint32), wanted.view(np.uint32)
    different = np.argwhere(found != wanted)
    assert not len(different), f"{len(different)} of {found.size} differ, first {different[0]}"


def rows_of_all_kinds(rows: int, k: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Rows of very different size, and rows that are zero, tiny, or have NaN or infinity."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k)) * np.exp(3 * rng.standard_normal((rows, 1)))
    x = x.astype(np.float32)
    special = {1: 0.0, 2: 1e-30, 3: 2.0**-90}
    for row, size in special.items():
        x[row::9] = x[row::9] * np.float32(0) + np.float32(size)
    x[4::9, k // 2] = np.nan
    x[5::9, 0] = np.inf
    x[6::9, -1] = -np.inf
    return x


@pytest.mark.parametrize("name", FORMATS)
def test_quantize(gpu: EmulatedGpu, name: str) -> None:
    fmt = FORMATS[name]
    for rows, k, group in [
        (19, 70, None),
        (10, 1, None),
        (9, 300, None),
        (7, 65, 16),
        (2, 1030, 520),
    ]:
        x = rows_of_all_kinds(rows, k)
        for found, wanted in zip(
            gpu.quantize(x, fmt, group), numerics.quantize(x, fmt, group), strict=True
        ):
            assert_same_bits(found, wanted)


def test_quantize_under_a_given_scale_and_with_candidates(gpu: EmulatedGpu) -> None:
    x = rows_of_all_kinds(19, 70)
    for name, largest in [("int8", 3.0), ("e2m1", 1e-3), ("e4m3", 50.0), ("e3m2", 2.0**-90)]:
        fmt = FORMATS[name]
        found = gpu.quantize(x, fmt, largest=largest)
        for a, b in zip(found, numerics.quantize_static(x, fmt, largest), strict=True):
            assert_same_bits(a, b)
    for candidates in ([8.0], [8.0, 6.0, 4.0]):
        for group in (16, 70, 7):
            found = gpu.quantize(x, FORMATS["e2m1"], group, candidates=candidates)
            wanted = numerics.quantize(x, FORMATS["e2m1"], group, candidates)
            for a, b in zip(found, wanted, strict=True):
                assert_same_bits(a, b)
