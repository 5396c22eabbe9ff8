"""Attention without a mask, from the projections' results to the input of the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper

from fp4dit_onnx import ops
from fp4dit_onnx.benchmark.backend import Absent, Backend, Loaded
from fp4dit_onnx.benchmark.case import Array, checked_sqnr, sample_rows
from fp4dit_onnx.benchmark.sessions import MICROSOFT, graph_model, on_onnxruntime
from fp4dit_onnx.benchmark.torch_models import attention as torch_attention
from fp4dit_onnx.numbers.formats import format_by_name
from fp4dit_onnx.spec.recipe import ATTENTION_PARTS

__all__ = ["PEERS", "AttentionCase", "ours", "ours_model"]

OPSET_OF_ATTENTION = 23


@dataclass(frozen=True)
class AttentionCase:
    """``softmax(q k^T / sqrt(D)) v`` a head, of normal random q, k and v [B, S, H * D].

    Attributes:
        batch: B.
        tokens: S, of queries and keys.
        heads: H.
        size: D, channels of a head.
        format: of q, k and v in ours; None for float.
    """

    batch: int
    tokens: int
    heads: int
    size: int
    format: str | None = "e2m3"

    kind = "attention"
    product = None

    @property
    def name(self) -> str:
        """B x S x H x D."""
        return f"{self.batch}x{self.tokens}x{self.heads}x{self.size}"

    @property
    def operations(self) -> float:
        """Of the two products; the softmax is not counted."""
        return 4.0 * self.batch * self.heads * self.tokens**2 * self.size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of q, k, v and the result: [B, S, H * D]."""
        return (self.batch, self.tokens, self.heads * self.size)

    @cached_property
    def feed(self) -> dict[str, Array]:
        """q, k and v, float32."""
        return {
            name: np.random.default_rng(seed).standard_normal(self.shape, np.float32)
            for seed, name in enumerate(ATTENTION_PARTS)
        }

    @cached_property
    def reference(self) -> Array:
        """The sampled queries' results in float64, [B, R, H * D]."""
        q, k, v = (
            self.feed[name].reshape(*self.shape[:2], self.heads, self.size).astype(np.float64)
            for name in ATTENTION_PARTS
        )
        q = q[:, sample_rows(self.tokens)]  # [B, S, H, D] -> [B, R, H, D]
        found = np.empty_like(q)
        for b, h in np.ndindex(self.batch, self.heads):
            logits = q[b, :, h] @ k[b, :, h].T / np.sqrt(self.size)  # [R, S]
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            found[b, :, h] = weights @ v[b, :, h] / weights.sum(axis=-1, keepdims=True)
        return found.reshape(self.batch, -1, self.heads * self.size)

    def sqnr(self, result: Array) -> float | None:
        """See `Case.sqnr`."""
        if result.shape != self.shape:
            raise ValueError(f"a result of shape {result.shape}, expected {self.shape}")
        return checked_sqnr(self.reference, result[:, sample_rows(self.tokens)])


def ours(isa: str) -> Backend[AttentionCase]:
    """q, k and v quantized per head and token, then this project's attention."""
    about = "FpQuantize of q, k, v + FpAttention"
    return on_onnxruntime(f"fp4dit {isa}", about, ours_model, isa)


def ours_model(case: AttentionCase) -> bytes:
    """Three quantizers and the attention operator."""
    return _model(case, _quantized_nodes(case))


def _quantized_nodes(case: AttentionCase) -> list[onnx.NodeProto]:
    """Split the heads, quantize each of q, k and v, FpAttention with a bias of 0, join the heads."""
    if case.format is None:
        raise Absent("attention is not quantized where activations stay in float")
    fmt = format_by_name(case.format)
    nodes = []
    for part in ATTENTION_PARTS:
        nodes.append(_node("Reshape", [part, "split"], [f"{part}_heads"]))
        nodes.append(
            _node(
                ops.quantize_op(fmt),
                [f"{part}_heads"],
                [f"{part}_q", f"{part}_scale"],
                domain=ops.DOMAIN,
                **ops.quantize_attributes(fmt),
            )
        )
    pairs = [f"{part}_{what}" for part in ATTENTION_PARTS for what in ("q", "scale")]
    attributes = ops.attention_attributes(fmt, case.size**-0.5)
    nodes.append(
        _node(ops.ATTENTION, [*pairs, "none"], ["heads"], domain=ops.DOMAIN, **attributes)
    )
    return [*nodes, _node("Reshape", ["heads", "join"], ["y"])]


def _node(op: str, inputs: Sequence[str], outputs: Sequence[str], **given: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), **given)


def _model(case: AttentionCase, nodes: Sequence[onnx.NodeProto], opset: int = ops.OPSET) -> bytes:
    """A model of `nodes` from q, k and v to y; the constants are those that the nodes name."""
    known = {
        "split": np.array([0, 0, case.heads, case.size]),  # [B, S, H * D] -> [B, S, H, D]
        "join": np.array([0, 0, case.heads * case.size]),
        "none": np.zeros((1, 1, 1, 1), np.float32),
        "root": np.float32(case.size**-0.25),
    }
    used = {name for node in nodes for name in node.input}
    constants = {name: np.asarray(value) for name, value in known.items() if name in used}
    return graph_model(nodes, case.feed, constants, case.shape, opset)


def _multi_head_attention(case: AttentionCase) -> bytes:
    op = "MultiHeadAttention"
    node = _node(op, ATTENTION_PARTS, ["y"], domain=MICROSOFT, num_heads=case.heads)
    return _model(case, [node])


def _attention_23(case: AttentionCase) -> bytes:
    heads = {"q_num_heads": case.heads, "kv_num_heads": case.heads}
    node = _node("Attention", ATTENTION_PARTS, ["y"], **heads)
    return _model(case, [node], OPSET_OF_ATTENTION)


def _matmul_softmax(case: AttentionCase) -> bytes:
    """As exporters write it: both factors scaled by D^-1/4, k transposed along with its heads."""
    order = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    nodes = []
    for part in ATTENTION_PARTS:
        nodes.append(_node("Reshape", [part, "split"], [f"{part}_split"]))
        nodes.append(_node("Transpose", [f"{part}_split"], [f"{part}_heads"], perm=order[part]))
    nodes += [
        _node("Mul", ["q_heads", "root"], ["q_scaled"]),
        _node("Mul", ["k_heads", "root"], ["k_scaled"]),
        _node("MatMul", ["q_scaled", "k_scaled"], ["logits"]),
        _node("Softmax", ["logits"], ["weights"], axis=-1),
        _node("MatMul", ["weights", "v_heads"], ["heads"]),
        _node("Transpose", ["heads"], ["tokens"], perm=[0, 2, 1, 3]),
        _node("Reshape", ["tokens", "join"], ["y"]),
    ]
    return _model(case, nodes)


def _torch(dtype: str, short: str) -> Backend[AttentionCase]:
    def load(case: AttentionCase, threads: int) -> Loaded:
        q, k, v = (case.feed[name] for name in ATTENTION_PARTS)
        return torch_attention(q, k, v, case.heads, dtype, threads)

    about = f"scaled_dot_product_attention, inputs in {dtype} already"
    return Backend(f"torch-{short}", about, load, "torch")


PEERS: tuple[Backend[AttentionCase], ...] = (
    on_onnxruntime("ort-matmul-softmax", "MatMul, Softmax, MatMul", _matmul_softmax),
    on_onnxruntime("ort-mha", f"{MICROSOFT} MultiHeadAttention", _multi_head_attention),
    on_onnxruntime("ort-attention", "Attention of opset 23", _attention_23),
    _torch("float32", "float32"),
    _torch("bfloat16", "bf16"),
)
"""Other backends for attention; another one is another entry."""
