"""2DQuant: bounds that are searched and trained, against the paper's formulas in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from toy_network import LAYERS, PICTURES, sampler_of, toy_network

from fp4dit_onnx.calibration.bounds import best_bound, bounded
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.run import Calibration, calibrate
from fp4dit_onnx.calibration.work import Work, model_digest
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.system.progress import SilentReporter

INT4 = FORMATS["int4"]


def test_a_bound_is_the_papers_quantizer_of_even_bounds() -> None:
    """``s round((clip(x, l, u) - l) / s) + l`` with u = -l = c and 15 levels; ties aside."""
    x = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    bound = 1.3
    s = 2 * bound / 14
    wanted = s * np.rint((np.clip(x.astype(np.float64), -bound, bound) + bound) / s) - bound
    found = bounded(torch.from_numpy(x), torch.tensor(bound), INT4)
    assert np.allclose(found.numpy(), wanted, atol=1e-6)


def test_gradients_reach_the_bound() -> None:
    """Beyond the bound its sign; within, the rounding error over the largest integer."""
    x = torch.tensor([-5.0, -0.3, 0.0, 0.41, 0.9, 3.0], requires_grad=True)
    bound = torch.tensor(1.0, requires_grad=True)
    each = torch.arange(1.0, 7.0)
    (bounded(x, bound, INT4) * each).sum().backward()
    values = x.detach().numpy()
    own = np.array([-1, 0, 0, 0, 0, 1], np.float64)
    inside = np.abs(values) < 1
    own[inside] = (np.rint(values[inside] * 7) - values[inside] * 7) / 7
    assert bound.grad is not None
    assert x.grad is not None
    assert float(bound.grad) == pytest.approx(float((own * each.numpy()).sum()), abs=1e-5)
    assert x.grad.tolist() == (each * torch.from_numpy(inside)).tolist()


@pytest.mark.parametrize("name", ["int4", "e2m1"])
def test_the_bound_of_the_least_error(name: str) -> None:
    fmt = FORMATS[name]
    weight = np.random.default_rng(1).standard_t(3, (16, 24)).astype(np.float32)
    most = float(np.abs(weight).max())
    errors = []
    for i in range(100):
        step = most * (1 - i / 100) / fmt.max_integer
        t = np.clip(np.abs(weight.astype(np.float64)) / step, 0, fmt.max_integer)
        nearest = fmt.magnitudes[np.abs(t[..., None] - fmt.magnitudes).argmin(axis=-1)]
        errors.append(np.square(nearest * step - np.abs(weight)).sum())
    best = int(np.argmin(errors))
    assert 0 < best < 99
    assert best_bound(torch.from_numpy(weight), fmt, 100) == pytest.approx(most * (1 - best / 100))
    assert best_bound(torch.zeros(2, 3), fmt, 100) == 0


def calibrated(folder: Path, iterations: int) -> tuple[Calibration, list[float]]:
    """The toy network in W4A4, and the errors of its blocks in units of those before training."""
    network, spec = toy_network(), LayerSpec.of("int4", "int4", 65536)
    work = Work(folder, {"model": model_digest(whole(network))})
    found = calibrate(
        whole(network),
        dict.fromkeys(LAYERS, spec),
        method_by_name("2dquant", samples=32, prompts=PICTURES, iterations=iterations),
        sampler_of(network),
        seed=0,
        provenance={},
        reporter=SilentReporter(),
        work=work,
    )
    finished = [work.finished(f"blocks.{i}") for i in range(3)]
    return found, [one[1] for one in finished if one is not None]


def test_bounds_are_trained_and_kept(tmp_path: Path) -> None:
    before, _ = calibrated(tmp_path / "a", 1)
    after, errors = calibrated(tmp_path / "b", 40)
    moved = []
    for name, layer in after.state.layers.items():
        assert len(np.unique(layer.scale)) == 1, "one bound a tensor"
        moved.append(layer.spec.largest != before.state.layers[name].spec.largest)
    assert sum(moved) > len(moved) // 2
    assert len(errors) == 3
    assert min(errors) < 0.95, "what the training looks at"
    assert max(errors) <= 1, "or the bounds that were searched"
