"""tools/quality.py: what it calibrates is kept, and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")

from quality import Bench, Row

PIPELINE = Path(__file__).parent / "pipelines" / "dit"
ROW = Row("gptq", "gptq", "fast")


def test_weights_outlive_the_work_that_made_them(tmp_path: Path, one_torch_thread: None) -> None:
    def bench() -> Bench:
        return Bench(PIPELINE, tmp_path, prompts=1, seeds=1, columns=["w4a6"])

    first = bench()
    state, seconds = first.calibrated(ROW, "w4a6")
    assert [path.name for path in tmp_path.iterdir()] == ["gptq.safetensors"]
    again, known = bench().calibrated(ROW, "w4a6")
    assert known == seconds
    for name, layer in state.layers.items():
        np.testing.assert_array_equal(layer.weight(), again.layers[name].weight())
    found = first.measured(ROW, "w4a6", state)
    assert found["psnr"]["mean"] > 15
    kept = first.measured(ROW, "w4a6", again)
    assert kept["psnr"]["values"] == list(found["psnr"]["values"])
