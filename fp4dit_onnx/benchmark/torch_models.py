"""What PyTorch computes; it is imported when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fp4dit_onnx.benchmark.backend import Loaded, package
from fp4dit_onnx.benchmark.case import Array

__all__ = ["attention", "linear_bf16"]


def linear_bf16(x: Array, weight: Array, bias: Array, threads: int) -> Loaded:
    """``linear`` on bfloat16 tensors: x [M, K], weight [N, K], bias [N]; converted beforehand."""
    torch = package("torch")
    tensors = [torch.from_numpy(value).bfloat16() for value in (x, weight, bias)]
    return _loaded(torch, lambda: torch.nn.functional.linear(*tensors), threads)


def attention(q: Array, k: Array, v: Array, heads: int, dtype: str, threads: int) -> Loaded:
    """``scaled_dot_product_attention`` of q, k, v [B, S, heads * D] to [B, S, heads * D].

    Inputs are converted beforehand to `dtype`, a torch name.
    """
    torch = package("torch")
    b, s, width = q.shape
    parts = [
        # [B, S, H * D] -> [B, H, S, D], a view
        torch.from_numpy(value)
        .to(getattr(torch, dtype))
        .view(b, s, heads, width // heads)
        .transpose(1, 2)
        for value in (q, k, v)
    ]

    def compute() -> Any:
        found = torch.nn.functional.scaled_dot_product_attention(*parts)
        return found.transpose(1, 2).reshape(b, s, width)  # [B, H, S, D] -> [B, S, H * D]

    return _loaded(torch, compute, threads)


def _loaded(torch: Any, compute: Callable[[], Any], threads: int) -> Loaded:
    torch.set_num_threads(threads)
    last: list[Any] = []

    def run() -> None:
        with torch.inference_mode():
            last[:] = [compute()]

    return Loaded(run, lambda: last[0].float().numpy())
