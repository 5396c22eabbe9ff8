"""Calibration unit by unit: what it reaches, that it resumes, and what it refuses."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from toy_network import (
    LAYERS,
    PICTURES,
    STEPS,
    TOKENS,
    WIDTH,
    Network,
    draw,
    sampler_of,
    toy_network,
)

from fp4dit_onnx.calibration import blockwise
from fp4dit_onnx.calibration.applying import quantize_layer
from fp4dit_onnx.calibration.importance import step_importance
from fp4dit_onnx.calibration.methods import (
    INPUTS_FROM,
    PARALLEL,
    Method,
    method_by_name,
    with_settings,
)
from fp4dit_onnx.calibration.record import (
    SampleRecorder,
    check_disk,
    choose,
    first_call,
    part_of,
)
from fp4dit_onnx.calibration.run import Calibration, calibrate
from fp4dit_onnx.calibration.samples import Samples
from fp4dit_onnx.calibration.units import Unit, sample_bytes, units_of
from fp4dit_onnx.calibration.walk import chunk_size
from fp4dit_onnx.calibration.work import Work, model_digest
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.network.execution import HOST, Execution
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedState, StoredParts, save_state
from fp4dit_onnx.system.executors import Task
from fp4dit_onnx.system.progress import SilentReporter

SPEC = LayerSpec.of("e1m2", "e2m3", 8)
METHOD = method_by_name("fp4dit", "fast", samples=64, prompts=PICTURES, penalty=20.0)


def shortened(iterations: int, **changes: Any) -> Method:
    """`METHOD` with fewer optimizer steps per unit."""
    return with_settings(METHOD, {"iterations": iterations, **changes})


@pytest.fixture
def network() -> Network:
    return toy_network()


UNITS = (
    Unit("embed", ("embed",)),
    Unit("blocks.0", ("blocks.0.mix", "blocks.0.ff.0", "blocks.0.ff.1")),
    Unit("blocks.1", ("blocks.1.mix", "blocks.1.ff.0", "blocks.1.ff.1")),
    Unit("blocks.2", ("blocks.2.mix",)),
    Unit("head", ("head",)),
)


def calibrated(
    network: Any, folder: Path, method: Method = METHOD, reporter: Any = None, **changes: Any
) -> Calibration:
    options = {"seed": 0, "provenance": {}, **changes}
    specs = dict.fromkeys(LAYERS, SPEC)
    made = whole(network)
    work = Work(folder, {"model": model_digest(made), "method": str(method)})
    return calibrate(
        made,
        specs,
        method,
        sampler_of(network),
        reporter=reporter or SilentReporter(),
        work=work,
        **options,
    )


def saved(state: QuantizedState, path: Path) -> bytes:
    save_state(state, path)
    return path.read_bytes()


# --- walking and choosing ----------------------------------------------------------------------


def test_units_come_in_the_order_of_the_calls(network: Network) -> None:
    call = part_of(first_call(network, sampler_of(network)), torch.arange(1))
    made = whole(network)
    assert units_of(made.topology(call, 1), made.blocks, LAYERS) == UNITS


def test_finished_layers_and_those_of_importance_take_no_memory(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a model of 12 billion weights are 6 GB, beside what training a block takes."""
    disturbed: list[QuantizedState] = []

    def noted(module: Any, state: QuantizedState, *rest: Any) -> Any:
        disturbed.append(state)
        return step_importance(module, state, *rest)

    monkeypatch.setattr("fp4dit_onnx.calibration.recording.step_importance", noted)
    found = calibrated(network, tmp_path / "work", shortened(2)).state
    for state in (*disturbed, found):
        assert set(state.layers) == set(LAYERS)
        assert all(isinstance(layer.parts, StoredParts) for layer in state.layers.values())
    assert len(disturbed) == 1
    kept = {path.stem for path in (tmp_path / "work" / "units").iterdir()}
    assert kept == {unit.name for unit in UNITS}
    assert not [*(tmp_path / "work").glob("nearest.*")]


def test_a_layer_that_never_runs_is_named(network: Network) -> None:
    network.idle = torch.nn.Linear(WIDTH, WIDTH)
    call = part_of(first_call(network, sampler_of(network)), torch.arange(1))
    made = whole(network)
    with pytest.raises(UsageError, match="layer idle was never run while sampling"):
        units_of(made.topology(call, 1), made.blocks, (*LAYERS, "idle"))


def test_recorded_twins_belong_together(network: Network, tmp_path: Path) -> None:
    sampler = sampler_of(network)
    choice = choose(sampler, 32, [1.0] * STEPS, 1.0, seed=3)
    recorder = SampleRecorder(network, choice, tmp_path / "inputs", paired=True)
    draw(network, 0, PICTURES)
    recorder.close()
    assert recorder.structure is not None
    place, count = tmp_path / "inputs", 2 * choice.count
    samples = Samples(place, recorder.structure, count, choice.weight, paired=True)
    assert samples.count == 2 * choice.count
    pairs = torch.arange(samples.pairs)
    (x,), kwargs = samples.take(samples.twins(pairs))
    first, second = x.chunk(2)
    assert torch.equal(first, second)  # the same latents
    unconditional, conditional = kwargs["time"].chunk(2)
    assert bool((unconditional == unconditional[:, :1]).all())  # a step's number alone
    assert not bool((conditional == conditional[:, :1]).all())


# --- reconstruction ----------------------------------------------------------------------------


def test_steps_are_told_of_units_that_were_trained(network: Network, tmp_path: Path) -> None:
    reporter, told = SilentReporter(), list[str]()
    reporter.note = told.append  # type: ignore[method-assign]
    calibrated(network, tmp_path / "work", shortened(2, only="blocks.1.*"), reporter)
    by_unit = dict(text.split(": ", 1) for text in told if "nearest rounding" in text)
    assert by_unit.keys() == {unit.name for unit in UNITS}
    assert by_unit.pop("blocks.1").endswith("of nearest rounding, 2 optimizer steps")
    assert set(by_unit.values()) == {"error 1.000 of nearest rounding"}


def guided_error(network: Any, state: QuantizedState) -> float:
    """Of the network's outputs on images that calibration did not see."""
    from fp4dit_onnx.calibration.simulate import simulated

    layers = {n: replace(q, spec=replace(q.spec, input=None)) for n, q in state.layers.items()}
    reference = draw(network, 1, 16)
    with simulated(network, QuantizedState(layers)):
        return float((draw(network, 1, 16) - reference).square().mean())


def test_trained_rounding_beats_nearest_on_unseen_pictures(
    network: Network, tmp_path: Path
) -> None:
    modules = list(network.modules())
    trained = calibrated(network, tmp_path / "trained")
    nearest = QuantizedState(
        {n: quantize_layer(n, network.get_submodule(n).weight, SPEC) for n in LAYERS}
    )
    assert list(network.modules()) == modules
    assert tuple(trained.state.layers) == LAYERS
    assert guided_error(network, trained.state) < 0.8 * guided_error(network, nearest)


def test_formats_are_chosen_by_evidence(network: Network, tmp_path: Path) -> None:
    torch.manual_seed(1)
    uniform = network.blocks[0].mix.weight
    uniform.copy_((torch.rand(uniform.shape) * 15 - 7.5).round().clamp(-7, 7) / 50)
    uniform[:, ::8] = 7 / 50  # e1m2 holds every weight exactly, e2m1 cannot hold 5 and 7
    powers = network.blocks[1].mix.weight
    powers.copy_(
        2.0 ** -torch.randint(0, 7, powers.shape) * (torch.randint(0, 2, powers.shape) * 2 - 1)
    )
    powers[:, ::8] = 1.0
    names = ("e2m1", "e1m2", "e3m0")
    method = method_by_name("fp-rtn").with_stage("choose-format")
    candidates = {"blocks.0.mix": names, "blocks.1.mix": names}
    found = calibrated(network, tmp_path / "w", method, candidates=candidates)
    chosen = {name: found.state.layers[name].spec.weight.format for name in LAYERS}
    assert (chosen["blocks.0.mix"], chosen["blocks.1.mix"]) == ("e1m2", "e3m0")
    assert chosen["head"] == SPEC.weight.format


def test_the_memory_bound_changes_nothing_but_memory(network: Network, tmp_path: Path) -> None:
    few = shortened(4)
    small = calibrated(network, tmp_path / "a", few, max_ram=1)
    large = calibrated(network, tmp_path / "b", few)
    for name in LAYERS:
        # Other batch sizes round float32 sums otherwise, which may tip a weight on the fence.
        a, b = small.state.layers[name].integers(), large.state.layers[name].integers()
        assert (a == b).mean() > 0.9
    assert chunk_size(10, 100) == 1
    assert chunk_size(1000, 100) == 10


class Killed(Exception):  # noqa: N818 - stands for a signal
    """Stands for a kill."""


@pytest.mark.parametrize("inputs", INPUTS_FROM)
@pytest.mark.parametrize("unit", ["embed", "blocks.1", "head"])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, inputs: str
) -> None:
    few = shortened(8, inputs=inputs)
    whole = calibrated(network, tmp_path / "whole", few)
    original, trained = blockwise.solve, []

    def dying(at: Unit, *rest: Any, **options: Any) -> Any:
        trained.append(at.name)
        if at.name == unit:
            raise Killed
        return original(at, *rest, **options)

    monkeypatch.setattr(blockwise, "solve", dying)
    with pytest.raises(Killed):
        calibrated(network, tmp_path / "killed", few)
    before = list(trained)
    trained.clear()

    def counting(at: Unit, *rest: Any, **options: Any) -> Any:
        trained.append(at.name)
        return original(at, *rest, **options)

    monkeypatch.setattr(blockwise, "solve", counting)
    resumed = calibrated(network, tmp_path / "killed", few)
    assert before[:-1] + trained == [u.name for u in UNITS]
    assert saved(whole.state, tmp_path / "1") == saved(resumed.state, tmp_path / "2")
    assert (whole.errors, whole.model_sqnr_db) == (resumed.errors, resumed.model_sqnr_db)


class OutOfOrder:
    """An executor that takes all tasks first, and pickles them; the last one ends first.

    Args:
        most: results that it gives before it is killed.
    """

    ahead = len(UNITS)

    def __init__(self, most: int = len(UNITS)) -> None:
        self._left = most

    def results(self, tasks: Iterable[Task[Any]]) -> Iterator[tuple[Task[Any], Any]]:
        """See `Executor`."""
        taken = [(task, pickle.dumps((task.function, task.arguments))) for task in tasks]
        for task, kept in reversed(taken):
            if not self._left:
                raise Killed
            self._left -= 1
            function, arguments = pickle.loads(kept)
            yield task, function(*arguments)


@dataclass(frozen=True)
class Pickled:
    """A network that can be pickled."""

    module: Any
    execution: Execution = HOST

    def materialize(self, name: str, execution: Execution | None = None) -> Any:
        """See `Parts`."""
        return whole(self.module).materialize(name, execution)

    def tensor(self, name: str) -> Any:
        """See `Parts`."""
        return whole(self.module).tensor(name)


def test_units_of_parallel_inputs_are_solved_in_any_order(
    network: Network, tmp_path: Path
) -> None:
    few = shortened(8, inputs=PARALLEL)
    here = calibrated(network, tmp_path / "here", few)
    elsewhere = {"executor": OutOfOrder(), "parts": Pickled(network)}
    there = calibrated(network, tmp_path / "there", few, **elsewhere)
    assert saved(here.state, tmp_path / "1") == saved(there.state, tmp_path / "2")
    assert not list((tmp_path / "there").glob("*@inputs*"))
    with pytest.raises(Killed):
        calibrated(network, tmp_path / "killed", few, **{**elsewhere, "executor": OutOfOrder(2)})
    resumed = calibrated(network, tmp_path / "killed", few)
    assert saved(here.state, tmp_path / "1") == saved(resumed.state, tmp_path / "2")
    sequential = calibrated(network, tmp_path / "sequential", shortened(8))
    assert sequential.state.layers["embed"].integers().tolist() == (
        here.state.layers["embed"].integers().tolist()
    )  # what comes first receives the same
    assert saved(here.state, tmp_path / "1") != saved(sequential.state, tmp_path / "3")


def test_units_are_rounded_in_any_order(network: Network, tmp_path: Path) -> None:
    """By transforms, choices and second moments: what a stage is can be pickled too."""
    method = method_by_name("tuned", samples=16, prompts=PICTURES)
    candidates = dict.fromkeys(LAYERS, ("e2m1", "e1m2"))
    here = calibrated(network, tmp_path / "here", method, candidates=candidates)
    elsewhere = {"executor": OutOfOrder(), "parts": Pickled(network)}
    there = calibrated(network, tmp_path / "there", method, candidates=candidates, **elsewhere)
    assert saved(here.state, tmp_path / "1") == saved(there.state, tmp_path / "2")
    assert here.compared == there.compared


# --- bad input ---------------------------------------------------------------------------------


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    first = {"model": {"sha256": "a"}, "method": {"rounding": {"iterations": 5}}}
    Work(tmp_path / "w", first)
    Work(tmp_path / "w", first)
    other = {"model": {"sha256": "a"}, "method": {"rounding": {"iterations": 7}}}
    with pytest.raises(
        UsageError, match=r"differs in method\.rounding\.iterations \(5 there, 7 now\)"
    ):
        Work(tmp_path / "w", other)


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="exists and holds no calibration"):
        Work(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="exists and holds no calibration"):
        Work(tmp_path / "file", {})
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_too_small_a_disk_is_said_before_anything_is_recorded(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UsageError, match=r"has 0\.0 GiB free: expected .* GiB for the recorded"):
        calibrated(network, tmp_path / "w")
    assert not (tmp_path / "w" / "inputs").exists()
    check_disk(tmp_path, 999, 1)


def test_units_that_wait_take_room_on_the_disk(network: Network) -> None:
    call = part_of(first_call(network, sampler_of(network)), torch.arange(1))
    topology = whole(network).topology(call, 1)
    memory, disk = sample_bytes(topology)
    block = 4 * (TOKENS * WIDTH + WIDTH + TOKENS * WIDTH)  # two arguments and a result in float32
    assert sample_bytes(topology, 2) == (memory, disk + 2 * block)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(network: Network, tmp_path: Path, value: float) -> None:
    network.head.weight[0, 0] = value
    with pytest.raises(UsageError, match="layer head: its weight holds NaN or infinity"):
        calibrated(network, tmp_path / "w")


def test_activations_that_are_not_finite(network: Network, tmp_path: Path) -> None:
    network.blocks[1].mix.bias[0] = float("inf")
    with pytest.raises(UsageError, match="NaN or infinity"):
        calibrated(network, tmp_path / "w")


def test_an_all_zero_layer_is_kept(network: Network, tmp_path: Path) -> None:
    network.blocks[2].mix.weight.zero_()
    few = shortened(3)
    found = calibrated(network, tmp_path / "w", few)
    assert not found.state.layers["blocks.2.mix"].weight().any()
