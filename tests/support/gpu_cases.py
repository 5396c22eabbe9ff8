"""Random cases of the CUDA kernels: each a function of a generator, compared with its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from emulated_gpu import EmulatedGpu

from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.attention import attention
from fp4dit_onnx.numbers.formats import FORMATS, FloatArray, FloatFormat

WEIGHTS = ("e2m1", "e1m2", "e3m0", "int4", "e2m3", "int6", "int8")
"""Formats whose integers are int8."""
WIDE_WEIGHTS = (*WEIGHTS, "e3m2", "e3m4")
Case = Callable[[EmulatedGpu, np.random.Generator], None]


def assert_same_bits(found: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic]) -> None:
    """The same type, shape and bits; any NaN is like another."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if found.dtype == np.float32:
        found, wanted = (np.where(np.isnan(a), np.float32(np.nan), a) for a in (found, wanted))
        found, wanted = found.view(np.uint32), wanted.view(np.uint32)
    different = np.argwhere(found != wanted)
    assert not len(different), f"{len(different)} of {found.size} differ, first {different[0]}"


def rows_of_all_kinds(rows: int, k: int, rng: np.random.Generator) -> FloatArray:
    """Rows of very different size, and rows that are zero, tiny, or have NaN or infinity."""
    wide = rng.standard_normal((rows, k)) * np.exp(3 * rng.standard_normal((rows, 1)))
    x: FloatArray = wide.astype(np.float32)
    for row, size in {1: 0.0, 2: 1e-30, 3: 2.0**-90}.items():
        x[row::9] = np.float32(size)
    x[4::9, k // 2] = np.nan
    x[5::9, 0] = np.inf
    x[6::9, -1] = -np.inf
    return x


def size_near(rng: np.random.Generator, most: int) -> int:
    """A size from 1 to `most`, often one at a tile's edge."""
    edges = [e + d for e in (1, 16, 32, 64, 128, 256) for d in (-1, 0, 1)]
    fitting = [e for e in edges if 1 <= e <= most]
    return int(rng.choice(fitting) if rng.random() < 0.5 else rng.integers(1, most + 1))


def random_quantize(gpu: EmulatedGpu, rng: np.random.Generator) -> None:
    """FpQuantize of any format, or FpQuantizeStatic."""
    fmt = FORMATS[str(rng.choice(list(FORMATS)))]
    k = size_near(rng, 400)
    x = rows_of_all_kinds(size_near(rng, 40), k, rng)
    largest = float(np.float32(np.exp(3 * rng.standard_normal())))
    group = size_near(rng, k)
    limits = fmt.lesser_limits if fmt.max_integer <= 127 else ()
    candidates = [float(v) for v in limits[:3] if rng.random() < 0.5]
    if rng.random() < 0.3:
        found = gpu.quantize(x, fmt, largest=largest)
        wanted = numerics.quantize_static(x, fmt, largest)
    else:
        found = gpu.quantize(x, fmt, group, candidates=candidates)
        wanted = numerics.quantize(x, fmt, group, candidates)
    for a, b in zip(found, wanted, strict=True):
        assert_same_bits(a, b)


def linear_case(
    gpu: EmulatedGpu,
    rng: np.random.Generator,
    act: FloatFormat | None,
    weight: FloatFormat,
    sizes: tuple[int, int, int],
    group: int,
    act_group: int | None = None,
    kind: Literal["plain", "multiplied", "signs"] = "plain",
) -> None:
    """FpLinear of random numbers, M x N x K; FpLinearInteger or FpLinearSigns."""
    m, n, k = sizes
    x = rows_of_all_kinds(m, k, rng)
    q: npt.NDArray[Any] = x
    scale = np.ones((1, 1), np.float32)
    if act is not None:
        q, scale = numerics.quantize(x, act, act_group)
    groups = numerics.group_count(k, min(group, k))
    numbers = np.flatnonzero(~np.isnan(weight.grid)).astype(np.uint8)
    codes = rng.choice(numbers, (n, k))
    bias = rng.standard_normal(n).astype(np.float32)
    scale_type = np.float16 if rng.random() < 0.5 else np.float32
    exact = rng.random((n, groups)) * 0.01 + 1e-3
    if n and rng.random() < 0.2:
        exact[0, 0] = rng.choice([np.nan, np.inf, 0.0, -1.0, 6e-8])
    steps: npt.NDArray[Any] = exact.astype(scale_type)
    wide = None
    if kind == "signs" and k > 2:
        wide = max(2, int(rng.integers(0, k)) // 2 * 2)
        codes[:, wide:] = rng.choice(np.array([1, 9], np.uint8), (n, k - wide))
    grid = numerics.decode(codes, weight)
    if kind == "plain":
        wanted = numerics.linear(q, scale, grid, steps, bias, min(group, k), act_group)
        found = gpu.linear(q, scale, codes, weight, steps, bias, group, act_group_size=act_group)
    else:
        most = min(15, int(127 // weight.max_integer))
        multipliers = rng.integers(0, most + 1, (n, groups)).astype(np.uint8)
        values = grid * numerics.expand_groups(multipliers.astype(np.float32), k, min(group, k))
        channel = np.ascontiguousarray(steps[:, 0])
        wanted = numerics.linear_integer(q, scale, values, channel, bias, act_group)
        found = gpu.linear(
            q, scale, codes, weight, channel, bias, group,
            act_group_size=act_group, multipliers=multipliers, wide=wide,
        )  # fmt: skip
    assert_same_bits(found, wanted)


def random_linear(gpu: EmulatedGpu, rng: np.random.Generator) -> None:
    """Any types, sizes and groups that FpLinear takes."""
    kinds: list[Literal["plain", "multiplied", "signs"]] = ["plain", "multiplied", "signs"]
    kind = kinds[int(rng.choice(3, p=[0.5, 0.25, 0.25]))]
    act = rng.choice(["int8", "e2m3", "int6", "e2m1", "e3m2", "e3m4", "", "e4m3", "e5m2"])
    weight = rng.choice([*WEIGHTS, "e3m2", "e3m4", "e4m3", "e5m2"])
    narrow = act not in ("", "e4m3", "e5m2")
    if narrow:
        weight = rng.choice(WIDE_WEIGHTS)
    if kind != "plain":
        act, weight = rng.choice(["int8", "e2m3", "int6"]), rng.choice(WEIGHTS)
    if kind == "signs":
        weight = rng.choice(WEIGHTS[:4])
    k = size_near(rng, 300)
    group = size_near(rng, k)
    act_group = None
    if act and rng.random() < 0.4:
        act_group = (
            max(1, group // int(rng.integers(1, 5))) if kind == "plain" else size_near(rng, k)
        )
        if kind == "plain" and group % act_group and max(group, act_group) < k:
            act_group = group
    if act == "e3m4" or weight == "e3m4":  # sums of longer groups do not fit
        group = min(group, 64)
        act_group = None if act_group is None else group
    sizes = (size_near(rng, 150), size_near(rng, 140), k)
    if act_group is None and rng.random() < 0.2:  # long rows, but few
        sizes = (size_near(rng, 20), size_near(rng, 20), k + 512)
    linear_case(gpu, rng, FORMATS.get(act), FORMATS[weight], sizes, group, act_group, kind)


def attention_case(
    gpu: EmulatedGpu,
    rng: np.random.Generator,
    fmt: FloatFormat,
    sizes: tuple[int, int, int, int, int],
    mask: str = "",
) -> None:
    """FpAttention of random numbers: batch, queries, keys, heads and size of a head."""
    batch, queries, keys, heads, size = sizes
    tensors: list[Any] = []
    for tokens in (queries, keys, keys):
        x = rng.standard_normal((batch, tokens, heads, size)) * np.exp(rng.standard_normal())
        tensors += list(numerics.quantize(x.astype(np.float32), fmt))
    rows = batch if rng.random() < 0.5 else 1
    bias = rng.standard_normal((rows, 1, 1, 1)).astype(np.float32)
    if mask:
        value = -np.inf if mask == "infinite" else -1e4
        drop = rng.random((rows, 1, 1, keys)) < rng.choice([0.3, 0.9])
        bias = np.where(drop, np.float32(value), rng.standard_normal(drop.shape)).astype(
            np.float32
        )
    if mask == "all":
        bias[...] = -np.inf
    if mask == "first tiles":
        bias[..., : keys // 2] = -np.inf
    if mask == "nan" and queries:
        tensors[1][0, 0, 0] = np.nan
        tensors[3][-1, keys // 2, -1] = np.nan
        tensors[5][0, 0, -1] = np.inf
    scale = float(np.float32(size**-0.5))
    given: list[Any] = [*tensors, bias, scale, fmt]
    assert_same_bits(gpu.attention(*given), attention(*given))


MASKS = ("", "", "finite", "infinite", "all", "first tiles", "nan")


def random_attention(gpu: EmulatedGpu, rng: np.random.Generator) -> None:
    """Any sizes, formats and masks that FpAttention takes."""
    fmt = FORMATS[str(rng.choice([*WEIGHTS, "e3m2", "e3m4"]))]
    size = int(rng.choice([64, 72, 24, 128])) if rng.random() < 0.5 else size_near(rng, 256)
    keys = size_near(rng, 600) if rng.random() < 0.5 else size_near(rng, 60)
    batch, heads = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    sizes = (batch, size_near(rng, 40), keys, heads, size)
    attention_case(gpu, rng, fmt, sizes, str(rng.choice(MASKS)))
