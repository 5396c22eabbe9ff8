"""Second moments from one pass of the sampler, and choices that cannot lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from toy_network import (
    BATCH,
    GUIDANCE,
    LAYERS,
    PICTURES,
    STEPS,
    Network,
    draw,
    sampler_of,
    toy_network,
)

from fp4dit_onnx.calibration.choosing import CHOSEN
from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.methods import Method, method_by_name
from fp4dit_onnx.calibration.moments import (
    MomentRecorder,
    Moments,
    MomentSettings,
    add_sums,
    joined,
)
from fp4dit_onnx.calibration.run import Calibration, calibrate
from fp4dit_onnx.calibration.stages import STAGES, Evidence
from fp4dit_onnx.calibration.work import Work, model_digest
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families.guidance import Guided
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.spec.hadamard import Hadamard
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.system.progress import SilentReporter

IMPORTANCE = [0.1, 0.2, 0.4, 1.0]
GUIDED = 3.0
TUNED = method_by_name("tuned", samples=32, prompts=PICTURES)
CANDIDATES = dict.fromkeys(LAYERS, ("e2m1", "e1m2", "e3m0"))


@pytest.fixture
def network() -> Network:
    return toy_network()


def recorded(network: Any, folder: Path, layers: tuple[str, ...] = LAYERS) -> Moments:
    sampler = sampler_of(network)
    settings, parts = MomentSettings(IMPORTANCE, GUIDED), []
    for batch in range(sampler.batches):
        place = folder.with_name(f"{folder.name}.{batch}")
        recorder = MomentRecorder(network, layers, sampler, settings, place, (0, batch))
        try:
            sampler.sample(lambda: None, batch)
        finally:
            recorder.close()
        parts.append(recorder.moments())
        add_sums(place, folder, batch)
    return joined(parts, folder)


@torch.no_grad()
def received(network: Any, name: str) -> list[torch.Tensor]:
    """All that a layer receives while the sampler runs."""
    found: list[torch.Tensor] = []
    layer = network.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, args: found.append(args[0].double()))
    try:
        draw(network, 0, PICTURES)
    finally:
        handle.remove()
    return found


@pytest.mark.parametrize("name", ["embed", "blocks.1.ff.1"])
def test_moments_count_steps_and_guidance(network: Network, tmp_path: Path, name: str) -> None:
    total, weight = torch.zeros(1), 0.0
    for call, x in enumerate(received(network, name)):
        importance = IMPORTANCE[call % STEPS]
        u, c = x.chunk(2)
        guided = u + GUIDANCE * (c - u)
        for rows, share in ((u, 0.5), (c, 0.5), (guided, GUIDED)):
            flat = rows.reshape(-1, x.shape[-1])
            total = total + importance * share / (1 + GUIDED) * BATCH * flat.T @ flat / len(flat)
        weight += importance * BATCH
    found = recorded(network, tmp_path / "m").matrix(name)
    assert torch.allclose(found, total / weight, rtol=1e-4, atol=1e-5)


def test_rows_are_twins_with_their_importance(network: Network, tmp_path: Path) -> None:
    rows = recorded(network, tmp_path / "m").rows("blocks.0.mix")
    everything = torch.cat([x.reshape(-1, x.shape[-1]) for x in received(network, "blocks.0.mix")])
    assert rows.halves.shape[1] == 2
    assert set(np.unique(rows.weight).round(6)) == set(np.float32(IMPORTANCE).round(6))
    for row in rows.halves[::97].flatten(0, 1).double():
        assert (everything - row).abs().sum(dim=1).min() < 1e-5
    shifted = torch.zeros(len(rows.weight), 2, 5)
    shifted[:, 1] = 1.0
    guided = GUIDANCE**2
    assert rows.error(shifted) == pytest.approx((0.5 + GUIDED * guided) / (1 + GUIDED))


class Shared(torch.nn.Module):
    """Two linears that read one tensor, and one that reads another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = (torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Any) -> tuple[Any]:
        """[B, 4] -> [B, 4]."""
        return (self.out(self.q(x) + self.k(x)),)


def test_layers_that_read_one_tensor_share_its_moments(tmp_path: Path) -> None:
    module = Shared()

    def sample(on_call: Any) -> None:
        for _ in range(2):
            module(torch.randn(6, 4))

    sampler = sampler_of(module, sample=sample, calls=2, steps=2, prompts=1)
    names = ("q", "k", "out")
    recorder = MomentRecorder(
        module, names, sampler, MomentSettings([1.0, 1.0], 1.0), tmp_path / "m", 0
    )
    with torch.no_grad():
        sample(None)
    recorder.close()
    assert recorder.moments().readers == {"q": "q", "k": "q", "out": "out"}
    assert len([*(tmp_path / "m").glob("*.sums.npy")]) == 2


class Again(torch.nn.Module):
    """A linear that runs twice in a call, as DiT's first time embedder does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)

    def forward(self, x: Any) -> tuple[Any]:
        """[B, 4] -> [B, 4]."""
        return (self.fc(x) + self.fc(2 * x),)


@torch.no_grad()
def test_a_layer_that_runs_twice_gives_rows_of_one_run(tmp_path: Path) -> None:
    module, calls = Again(), 512
    sampler = sampler_of(module, calls=calls, steps=calls, batch=PICTURES, guidance=Guided())
    recorder = MomentRecorder(
        module, ("fc",), sampler, MomentSettings([1.0], 1.0), tmp_path / "m", 0
    )
    given = [torch.randn(1, 4) for _ in range(calls)]
    for x in given:
        module(x)
    recorder.close()
    found = recorder.moments()
    assert torch.equal(found.rows("fc").halves[:, 0], torch.cat(given))
    x = torch.cat(given).double()
    assert torch.allclose(found.matrix("fc"), 2.5 * x.T @ x / calls, rtol=1e-4, atol=1e-5)


def test_sums_of_a_batch_are_added_once(tmp_path: Path) -> None:
    """Whoever is killed after a file was replaced adds the batch again."""
    given = [torch.randn(3, 3) for _ in range(3)]
    for again in (False, True):
        for number, sums in enumerate(given):
            batch = tmp_path / f"batch.{number}"
            batch.mkdir(exist_ok=True)
            np.save(batch / "fc.sums.npy", sums.numpy())
            add_sums(batch, tmp_path / "whole", number)
            assert not list(batch.iterdir())
            if again and number:
                np.save(batch / "fc.sums.npy", sums.numpy())
                add_sums(batch, tmp_path / "whole", number)
        (found,) = (tmp_path / "whole").iterdir()
        assert found.name == "fc.sums.npy.3"
        assert np.array_equal(np.load(found), given[0] + given[1] + given[2])
        found.unlink()


@pytest.mark.parametrize(
    ("layers", "spoil", "message"),
    [
        (("head",), True, "layer head: the float model's own activations hold NaN or infinity"),
        (("head", "idle"), False, "layer idle was never run while sampling"),
    ],
)
def test_moments_that_say_nothing_are_refused(
    network: Network,
    tmp_path: Path,
    layers: tuple[str, ...],
    spoil: bool,
    message: str,
) -> None:
    network.idle = torch.nn.Linear(4, 4)
    if spoil:
        network.embed.bias[0] = torch.nan
    with pytest.raises(UsageError, match=message):
        recorded(network, tmp_path / "m", layers)


# --- rotations ---------------------------------------------------------------------------------


class _Known:
    """Inputs of a layer whose errors are known: with rotation, and without."""

    def __init__(self, reader: str, plain: float, turned: float) -> None:
        self.reader, self._errors = reader, {False: plain, True: turned}

    def error(self, draft: Draft) -> float:
        return self._errors[bool(draft.spec.input_ops)]


def rotations(errors: dict[str, tuple[str, float, float]], activation: str | None) -> set[str]:
    """Names of the layers that are rotated, of layers with these readers and errors."""
    spec = LayerSpec.of("e1m2", activation, 8)
    drafts = {name: Draft(name, torch.ones(3, 16), spec) for name in errors}

    def inputs(draft: Draft) -> Any:
        return _Known(*errors[draft.name])

    evidence = Evidence(lambda draft: draft, lambda draft: draft, inputs)
    found = STAGES["hadamard"](8).apply(drafts, evidence)
    turned = {name for name, draft in found.items() if draft.spec.input_ops == (Hadamard(8),)}
    for name, draft in found.items():
        assert torch.equal(draft.weight, drafts[name].weight) == (name not in turned)
    return turned


def test_linears_of_one_tensor_are_rotated_together() -> None:
    errors = {"q": ("q", 1.0, 0.2), "k": ("q", 1.0, 2.0), "out": ("out", 1.0, 1.1)}
    assert rotations(errors, "e2m3") == {"q", "k"}
    assert rotations({**errors, "k": ("q", 1.0, 6.0)}, "e2m3") == set()
    assert rotations({**errors, "k": ("k", 1.0, 6.0)}, "e2m3") == {"q"}


def test_layers_whose_activations_stay_in_float_are_not_rotated() -> None:
    assert rotations({"q": ("q", 1.0, 0.2)}, None) == set()


# --- choices -----------------------------------------------------------------------------------


def tuned(network: Any, folder: Path, method: Method = TUNED, **changes: Any) -> Calibration:
    specs = dict.fromkeys(LAYERS, LayerSpec.of("e2m1", "e2m3", 8, "int4*f32"))
    return calibrate(
        whole(network),
        specs,
        method,
        sampler_of(network, **changes),
        seed=0,
        provenance={},
        reporter=SilentReporter(),
        candidates=CANDIDATES,
        work=Work(folder, {"model": model_digest(whole(network))}),
    )


def test_every_uniform_choice_is_compared_and_the_best_set_taken(
    network: Network,
    tmp_path: Path,
) -> None:
    network.blocks[0].mix.weight[:, 3] *= 30  # an input of large weights: rotation spreads it
    found = tuned(network, tmp_path / "w")
    errors = {row.choice: row.error for row in found.compared}
    assert set(errors) == {
        CHOSEN,
        *(f"{f}, {r}" for f in ("e2m1", "e1m2") for r in ("not transformed", "Hadamard 64")),
    }
    assert errors[CHOSEN] == 1
    (taken,) = [row for row in found.compared if row.taken]
    assert taken.error == min(errors.values())
    layers = found.state.layers
    assert {layer.spec.input_ops for layer in layers.values()} <= {(), (Hadamard(64),)}
    assert all("multipliers" in layer.parts for layer in layers.values())
    assert any(layer.spec.input_ops for layer in layers.values())
    assert all(error.weight > 10 for error in found.errors.values()), "of rotated weights too"


def test_choices_that_lose_are_not_taken(
    network: Network,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However bad each layer's own choice is, the result is as good as the best uniform one."""
    from fp4dit_onnx.calibration.layer_inputs import LayerInputs

    right = LayerInputs.loss
    monkeypatch.setattr(LayerInputs, "loss", lambda self, draft: -right(self, draft))
    found = tuned(network, tmp_path / "w")
    errors = {row.choice: row.error for row in found.compared}
    (taken,) = [row.choice for row in found.compared if row.taken]
    assert errors[taken] == min(errors.values()) < 0.9 * errors[CHOSEN]
    (fmt,) = {layer.spec.weight.format for layer in found.state.layers.values()}
    assert taken.startswith(fmt)


def test_a_killed_run_goes_on_to_the_same_bytes(
    network: Network,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed in the second batch of images, at their end, and while layers are rounded."""
    whole = tuned(network, tmp_path / "a")
    calls = 0

    def sample(on_call: Any, first: int) -> None:
        def counted() -> None:
            nonlocal calls
            calls += 1
            on_call()
            if calls == STEPS + 2:
                raise KeyboardInterrupt

        draw(network, 0, PICTURES, counted, first)

    with pytest.raises(KeyboardInterrupt):
        tuned(network, tmp_path / "b", sample=sample)
    right = MomentRecorder.moments

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(MomentRecorder, "moments", killed)
    with pytest.raises(KeyboardInterrupt):
        tuned(network, tmp_path / "b", sample=sample, probe=None)  # importance is known
    assert calls == STEPS + 2 + STEPS  # the first batch is not sampled again
    monkeypatch.setattr(MomentRecorder, "moments", right)
    finish, done = Work.finish, []

    def dying(self: Work, unit: str, *rest: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(unit)
        finish(self, unit, *rest)

    monkeypatch.setattr(Work, "finish", dying)
    with pytest.raises(KeyboardInterrupt):
        tuned(network, tmp_path / "b")
    monkeypatch.setattr(Work, "finish", finish)
    resumed = tuned(network, tmp_path / "b")
    assert resumed.compared == whole.compared
    for name, layer in whole.state.layers.items():
        again = resumed.state.layers[name]
        assert again.spec == layer.spec
        assert all(np.array_equal(again.parts[role], part) for role, part in layer.parts.items())
