"""Calibration on a device: all of it, and nothing that a device refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from pretend_device import PRETEND, PretendDevice
from toy_network import LAYERS, PICTURES, sampler_of, toy_network

from fp4dit_onnx.calibration.methods import method_by_name, method_names
from fp4dit_onnx.calibration.run import Calibration, calibrate
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.network.execution import HOST, Execution
from fp4dit_onnx.network.network import Network, whole
from fp4dit_onnx.network.streaming import cast_rest
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import save_state
from fp4dit_onnx.system.progress import SilentReporter

DEVICE = Execution(PRETEND)
SPECS = dict.fromkeys(LAYERS, LayerSpec.of("e2m1", "e2m3", 8))


def placed(execution: Execution) -> Network:
    """The toy network where `execution` says, its weights known in float32."""
    module = toy_network()
    stored = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    cast_rest(module, execution)
    return replace(whole(module), read=stored.__getitem__, execution=execution)


def calibrated(name: str, folder: Path, execution: Execution, **changes: Any) -> Calibration:
    quick = {"iterations": 3} if method_by_name(name).iterations else {}
    method = method_by_name(name, "fast", samples=16, prompts=PICTURES, **quick)
    network = placed(execution)
    return calibrate(
        network,
        SPECS,
        method,
        sampler_of(network.module),
        seed=0,
        provenance={},
        reporter=SilentReporter(),
        work=Work(folder, {}),
        candidates=dict.fromkeys(LAYERS, ("e2m1", "e1m2", "e3m0")),
        **changes,
    )


def saved(found: Calibration, path: Path) -> bytes:
    save_state(found.state, path)
    return path.read_bytes()


@pytest.mark.parametrize("name", method_names())
def test_every_method_runs_on_a_device(name: str, tmp_path: Path) -> None:
    """Operands are never on two devices, none is read there, none is float64; the bits are the CPU's."""
    with PretendDevice() as device:
        there = calibrated(name, tmp_path / "there", DEVICE)
    here = calibrated(name, tmp_path / "here", HOST)
    assert device.ran > 100
    assert saved(there, tmp_path / "a") == saved(here, tmp_path / "b")
    assert there.errors == here.errors
    assert there.model_sqnr_db == here.model_sqnr_db
