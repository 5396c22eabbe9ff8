"""Vectors that balance inputs and weights: formulas against numpy, stages on a toy network."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from toy_network import LAYERS, PICTURES, STEPS, draw, sampler_of, toy_network

from fp4dit_onnx.calibration import affine, balancing
from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.methods import method_by_name, read_method
from fp4dit_onnx.calibration.moments import MomentRecorder, MomentSettings
from fp4dit_onnx.calibration.run import Calibration, calibrate
from fp4dit_onnx.calibration.stages import STAGES, Evidence
from fp4dit_onnx.calibration.work import Work, model_digest
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.network.execution import HOST
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import load_state, save_state
from fp4dit_onnx.system.progress import SilentReporter

K = 16
RANDOM = np.random.default_rng(0)
PEAKS = np.abs(RANDOM.standard_normal((7, K))) * np.geomspace(0.1, 30, K)
WEIGHT = RANDOM.standard_normal((2, 8, K)) * np.geomspace(3, 0.2, K)
"""Two linears that read one tensor."""


def drafts(activation: str | None = "int8") -> list[Draft]:
    spec = LayerSpec.of("int4", activation, 8)
    return [Draft(n, torch.tensor(w).float(), spec) for n, w in zip("qk", WEIGHT, strict=True)]


class Known:
    """What both linears receive: rows whose sizes grow with their number, and maxima."""

    def __init__(self) -> None:
        rows = RANDOM.standard_normal((64, 1, K)) * np.geomspace(0.1, 30, K)
        self.halves = torch.tensor(rows).float()
        self.peaks = torch.tensor(PEAKS).float()
        self.errors: list[float] = []

    def __call__(self, draft: Draft) -> Any:
        """What a layer receives."""
        known = self

        class Given:
            reader = "q"

            def peaks(self) -> torch.Tensor:
                return known.peaks

            def rows(self) -> Any:
                return known

            execution = HOST

            def error(self, rounded: Draft) -> float:
                """Of the dequantized weight, activations quantized too; in numpy."""
                x = known.halves[:, 0].numpy()
                wanted = x.astype(np.float64) @ draft.weight.double().numpy().T
                made = rounded.layer()
                for one in made.spec.input_ops:
                    x = one(x)
                q, scale = numerics.quantize(x, FORMATS[str(made.spec.formats[1])], K)
                found = numerics.dequantize(q, scale, K).astype(np.float64) @ made.weight().T
                known.errors.append(float(np.square(found - wanted).mean()))
                return known.errors[-1]

        return Given()


def factors(stage: Any, known: Known) -> tuple[dict[str, Draft], np.ndarray | None]:
    """What a stage makes of both, and the factor that they share."""
    given = {draft.name: draft for draft in drafts()}
    found = dict(stage.apply(given, Evidence(lambda draft: draft, inputs=known)))
    ops = {draft.spec.input_ops for draft in found.values()}
    assert len(ops) == 1, "one vector for both"
    (own,) = ops
    if not own:
        return found, None
    factor = own[0].tensors["factor"]
    assert own[0].owner == "q"
    for name, draft in found.items():
        wanted = given[name].weight.double().numpy() / factor
        np.testing.assert_allclose(draft.weight.numpy(), wanted, rtol=1e-6)
    return found, factor


@pytest.mark.parametrize(("alpha", "statistic"), [(0.5, "max"), (0.3, "mean")])
def test_smoothquant(alpha: float, statistic: str) -> None:
    a = PEAKS.max(axis=0) if statistic == "max" else PEAKS.mean(axis=0)
    w = np.abs(WEIGHT).max(axis=(0, 1))
    _, factor = factors(STAGES["smoothquant"](alpha, statistic), Known())
    np.testing.assert_allclose(factor, w ** (1 - alpha) / a**alpha, rtol=1e-5)


def rank(values: np.ndarray) -> np.ndarray:
    """From the definition: how many are smaller, and half of those that are equal."""
    less = (values[:, None] > values).sum(axis=1)
    return np.asarray(less + ((values[:, None] == values).sum(axis=1) + 1) / 2)


def test_salience_weights_samples_by_rank_correlation() -> None:
    w = np.abs(WEIGHT).max(axis=(0, 1))
    rho = [np.corrcoef(rank(a), rank(w))[0, 1] for a in PEAKS.astype(np.float32)]
    eta = np.exp(-np.array(rho)) / np.exp(-np.array(rho)).sum()
    a = eta @ PEAKS
    _, factor = factors(STAGES["salience"](), Known())
    np.testing.assert_allclose(factor, np.sqrt(w / a), rtol=1e-5)
    tied = torch.tensor([2.0, 5.0, 2.0, 1.0])
    assert balancing.ranks(tied).tolist() == rank(tied.numpy()).tolist() == [2.5, 4, 2.5, 1]


def test_awq_takes_the_exponent_of_the_least_error() -> None:
    known = Known()
    _, factor = factors(STAGES["awq"](4), known)
    each = np.array(known.errors).reshape(4, 2).sum(axis=1)
    best = int(each.argmin())
    assert best > 0, "the rows are made so that it helps"
    scale = np.abs(known.halves.double().numpy()).mean(axis=(0, 1)) ** (best / 4)
    np.testing.assert_allclose(factor, np.sqrt(scale.max() * scale.min()) / scale, rtol=1e-5)


def test_awq_may_leave_a_layer_as_it_is() -> None:
    known = Known()
    known.halves = torch.zeros(4, 1, K)
    assert factors(STAGES["awq"](4), known)[1] is None


def test_inputs_that_are_never_anything_keep_their_weights() -> None:
    a, w = torch.ones(5, 3), torch.tensor([1.0, 0.0, 4.0])
    a[:, 2] = 0
    for divisor in (balancing.salience_scale(a, w), balancing.smooth_scale(a[0], w, 0.5)):
        assert divisor.tolist()[1:] == [1, 1]


@torch.no_grad()
@pytest.mark.parametrize("maxima", [True, False])
def test_maxima_of_each_sample_and_step(maxima: bool, tmp_path: Path) -> None:
    """Where a stage looks at them: of a large model they take more room than its weights."""
    network, found = toy_network(), []
    handle = network.blocks[1].mix.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    layers, place = ("blocks.1.mix",), tmp_path / "m"
    sampler = sampler_of(network, batch=PICTURES)
    recorder = MomentRecorder(
        network, layers, sampler, MomentSettings([1.0] * STEPS, 1.0, maxima), place, 0
    )
    draw(network, 0, PICTURES)
    recorder.close()
    handle.remove()
    if not maxima:
        assert not list(place.glob("*peaks*"))
        assert method_by_name("smoothquant").needs("maxima")
        assert not method_by_name("tuned").needs("maxima")
        return
    wanted = torch.cat([x.abs().amax(dim=1) for x in found])
    assert wanted.shape == (2 * PICTURES * STEPS, 16)
    assert torch.equal(recorder.moments().peaks("blocks.1.mix"), wanted)


def calibrated(method: Any, folder: Path) -> Calibration:
    network = toy_network()
    network.blocks[0].mix.weight[:, 3] *= 30
    return calibrate(
        whole(network),
        dict.fromkeys(LAYERS, LayerSpec.of("int4", "int8", 8)),
        method,
        sampler_of(network),
        seed=0,
        provenance={},
        reporter=SilentReporter(),
        work=Work(folder, {"model": model_digest(whole(network))}),
    )


# --- affine ------------------------------------------------------------------------------------


def test_the_mask_opens_from_the_diagonal() -> None:
    for epoch, reach in ((0, 0), (1, 1), (2, 2), (3, 4)):
        wanted = [
            [1 if i == j else 0.1 * (abs(i - j) <= reach) for j in range(5)] for i in range(5)
        ]
        found = affine.gradual_mask(5, epoch, 4, 0.1)
        assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float32)), epoch


def test_a_matrix_is_made_dominated_by_its_diagonal() -> None:
    given = torch.tensor([[2.0, -3.0, 1.0], [0.1, -1.0, 0.2], [0.0, 0.0, 0.5]])
    found = affine.dominant(given)
    assert torch.equal(found[1:], given[1:])
    assert found[0].tolist() == pytest.approx([2, -0.99 * 1.5, 0.99 * 0.5])


def test_a_trained_matrix_loses_less_than_its_diagonal() -> None:
    """Where inputs nearly repeat each other; and the weight makes up for it."""
    known, given = Known(), {draft.name: draft for draft in drafts("int4")}
    shared = torch.tensor(RANDOM.standard_normal((64, 1, 1))).float()
    known.halves = 0.2 * known.halves / known.halves.abs().mean(dim=0) + shared
    known.peaks = known.halves.abs().amax(dim=0)
    stage = STAGES["affinequant"](epochs=8, iterations=160, learning_rate=2e-2)
    found = stage.apply(given, Evidence(lambda draft: draft, inputs=known))
    plain, balanced, mixed = np.array(known.errors).reshape(3, 2).sum(axis=1)
    assert mixed < 0.9 * min(plain, balanced)
    ((one,),) = {draft.spec.input_ops for draft in found.values()}
    matrix = one.tensors["matrix"].astype(np.float64)
    for name, draft in found.items():
        back = draft.weight.double().numpy() @ matrix.T
        np.testing.assert_allclose(back, given[name].weight.numpy(), atol=1e-5)
    large = STAGES["affinequant"](most=K - 1)
    assert large.apply(given, Evidence(lambda draft: draft, inputs=known)) == given


RECIPES = {
    "affinequant": {(), ("diagonal",), ("affine",)},
    "smoothquant": {("diagonal",)},
    "awq": {(), ("diagonal",)},
    "ptq4dit": {("diagonal",)},
    "vidit-q": {("diagonal", "hadamard")},
}


@pytest.mark.parametrize("name", RECIPES)
@torch.no_grad()
def test_recipes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrated and resumed to the same bytes; a state file keeps the vectors."""
    changes = {"iterations": 3} if name in ("ptq4dit", "affinequant") else {}
    method = method_by_name(name, samples=32, prompts=PICTURES, **changes)
    pickle.dumps(method)
    made = calibrated(method, tmp_path / "a")
    layers = made.state.layers
    kinds = {tuple(one.name for one in layer.spec.input_ops) for layer in layers.values()}
    assert kinds <= RECIPES[name]
    assert any(kinds)
    assert made.model_sqnr_db > 10
    save_state(made.state, tmp_path / "state.safetensors")
    kept = load_state(tmp_path / "state.safetensors").layers
    assert {n: layer.spec for n, layer in kept.items()} == {n: v.spec for n, v in layers.items()}

    finish, done = Work.finish, []

    def dying(self: Work, unit: str, *rest: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(unit)
        finish(self, unit, *rest)

    monkeypatch.setattr(Work, "finish", dying)
    with pytest.raises(KeyboardInterrupt):
        calibrated(method, tmp_path / "b")
    monkeypatch.setattr(Work, "finish", finish)
    for layer, again in zip(
        layers.values(), calibrated(method, tmp_path / "b").state.layers.values(), strict=True
    ):
        assert again.spec == layer.spec
        assert all(np.array_equal(again.parts[role], part) for role, part in layer.parts.items())


def test_transforms_out_of_order_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    stages = ", ".join(
        f'{{ use = "{u}" }}' for u in ("hadamard", "smoothquant", "absmax", "nearest")
    )
    path.write_text(f'extends = "gptq"\nstage = [{stages}]\n')
    expected = "recipe mine: stages hadamard, smoothquant: expected one at most for each transform"
    with pytest.raises(UsageError, match=expected):
        read_method(path)
    with pytest.raises(UsageError, match=r"smoothquant\.statistic 'least': expected max or mean"):
        STAGES["smoothquant"](0.5, "least")
