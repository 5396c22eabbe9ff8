"""Where ONNX Runtime's CUDA provider places nodes, as tools/gpu_placement.py reads it from the log."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import gpu_placement
import pytest

PYTHON = os.environ.get("FP4DIT_ORT_GPU_PYTHON", "")
"""An interpreter that has onnxruntime-gpu."""

HEAD = "2026-11-29 14:55:38.6 [V:onnxruntime:, session_state.cc:15 VerifyEachNodeIsAssignedToAnEp]"
LOG = f"""
{HEAD} Node placements
{HEAD}  Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1
{HEAD}   FpLinear (layer)
{HEAD}  Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 4
{HEAD}   FpQuantize (layer.input/Quantize)
{HEAD}   Gelu (a name (with brackets))
{HEAD}   MemcpyToHost (Memcpy)
{HEAD}   MemcpyToHost (Memcpy_token_0)
2026-11-29 14:55:38.6 [V:onnxruntime:, session_state.cc:193 CreateGraphInfo] FpScale (no node)
"""


def test_nodes_and_copies_by_provider() -> None:
    placement = gpu_placement.placement_of(LOG)
    assert placement.copies == 2
    assert placement.nodes["CUDAExecutionProvider"] == Counter(FpQuantize=1, Gelu=1)
    assert gpu_placement.row("bundle", placement) == "| bundle | 1 | 1 | 1 | 0 | 2 |"


def test_all_nodes_of_one_provider() -> None:
    log = f"{HEAD}  All nodes placed on [CUDAExecutionProvider]. Number of nodes: 7"
    placement = gpu_placement.placement_of(log)
    assert placement.nodes["CUDAExecutionProvider"].total() == 7
    assert set(placement.nodes) == {"CUDAExecutionProvider"}
    assert (
        gpu_placement.row("bundle", placement) == "| bundle | all | 0 | all; 7 of both | 0 | 0 |"
    )


@pytest.mark.parametrize(
    ("log", "said"),
    [("", "does not say where"), (LOG.replace("nodes: 4", "nodes: 5"), "counts .* and lists")],
)
def test_a_log_that_is_not_understood(log: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gpu_placement.placement_of(log)


@pytest.mark.skipif(
    not PYTHON, reason="needs onnxruntime-gpu: FP4DIT_ORT_GPU_PYTHON names its Python"
)
def test_the_cuda_provider_runs_our_operators(tmp_path: Path) -> None:
    cuda = gpu_placement.FakeCuda(Path(PYTHON), tmp_path)
    for sizes in (None, {"M": gpu_placement.ROWS}):
        placement, different = gpu_placement.differences(cuda, tmp_path, sizes)
        assert set(placement.nodes) == {"CUDAExecutionProvider"}
        assert different == 0
