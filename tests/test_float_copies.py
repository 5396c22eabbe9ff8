"""What `verify` takes for a float copy of a quantized weight, and whom it asks for exact bits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

pytest.importorskip("onnxruntime")

from fp4dit_onnx.spec.affine import Affine
from fp4dit_onnx.verification.node_checks import LIBRARY, NodeChecks
from fp4dit_onnx.verification.subject import float_copies

K = 8


def manifest(**layer: Any) -> Any:
    row = {"name": "fc", "shape": (K, K), "branch": None, "input_ops": (), **layer}
    return SimpleNamespace(layers=[SimpleNamespace(**row)], skipped=[SimpleNamespace(name="out")])


def tensors(*names: str, dtype: type = np.float32) -> list[Any]:
    return [numpy_helper.from_array(np.zeros((K, K), dtype), name) for name in names]


def test_a_float_tensor_of_a_weights_shape_is_a_copy() -> None:
    assert float_copies(manifest(), tensors("fc.weight", "folded")) == ["fc.weight", "folded"]
    assert float_copies(manifest(shape=(K, 2 * K)), tensors("fc.weight")) == []
    assert float_copies(manifest(), tensors("fc.weight.codes", dtype=np.uint8)) == []


def test_what_a_layer_itself_holds_is_none() -> None:
    """A float weight that stays, scales, the matrix of a transform, those of a branch and of a slot."""
    kept = tensors("out.weight", "fc.weight.scale", "fc.lora.down", "fc.lora.up")
    assert float_copies(manifest(), kept) == []
    matrix, branch = tensors("fc.input.matrix"), tensors("fc.branch.down", "fc.branch.up")
    assert float_copies(manifest(), [*matrix, *branch]) != []
    assert float_copies(manifest(input_ops=(Affine("fc"),)), matrix) == []
    assert float_copies(manifest(input_ops=(Affine("other"),)), matrix) == ["fc.input.matrix"]
    assert float_copies(manifest(branch=K), branch) == []


def test_the_library_gives_the_references_bits_on_every_device() -> None:
    asked = [
        NodeChecks({}, {}, f"{who}{on}") for on in ("", " on cuda:1") for who in (LIBRARY, "stock")
    ]
    assert [checks.kernels for checks in asked] == [True, False, True, False]
    assert asked[2].bound == "bit for bit the reference" != asked[3].bound
