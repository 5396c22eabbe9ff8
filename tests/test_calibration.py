"""Calibration in torch: recording, the simulation, and the whole of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch

from fp4dit_onnx.calibration.applying import quantize_layer
from fp4dit_onnx.calibration.batches import ROWS_PER_CALL
from fp4dit_onnx.calibration.capture import CallRecorder, InputRecorder
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.record import Sampler
from fp4dit_onnx.calibration.recording import MEASURED_CALLS
from fp4dit_onnx.calibration.run import Calibration, calibrate, sqnr_db
from fp4dit_onnx.calibration.simulate import SimulatedLinear, simulate, simulated
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.compare import linear_rounding_bound, same_bits, within
from fp4dit_onnx.numbers.compare import sqnr_db as sqnr_db_numpy
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer, QuantizedState, save_state
from fp4dit_onnx.system.progress import SilentReporter

Array = npt.NDArray[Any]

SPEC = LayerSpec.of("e2m1", "e2m3", 8)


def assert_same(wanted: Array, found: Any) -> None:
    same = same_bits(wanted, found.numpy())
    assert same.ok, same.detail


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- recording ---------------------------------------------------------------------------------


class TinyNetwork(torch.nn.Module):
    """Two linears that run, one that never does; returns a tuple as diffusers' networks do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(21, 16)
        self.block = torch.nn.Sequential(torch.nn.GELU(), torch.nn.Linear(16, 5, bias=False))
        self.idle = torch.nn.Linear(21, 4)

    def forward(self, x: Any) -> tuple[Any]:
        """[..., 21] -> [..., 5]."""
        return (self.block(self.first(x)),)


USED = ("first", "block.1")


@pytest.fixture
def network() -> TinyNetwork:
    return TinyNetwork().requires_grad_(requires_grad=False).eval()


def hooks(network: Any) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in network.modules())


CALLS = [normal(2, 5, 21, seed=i) for i in range(6)]


def run_calls(network: Any, on_call: Callable[[], None] = lambda: None) -> None:
    for x in CALLS:
        network(x)
        on_call()


def record_inputs(
    network: Any,
    layers: Sequence[str],
    sample: Callable[[], object],
    *,
    rows_per_call: int = 3,
    seed: int | tuple[int, ...] = 0,
) -> dict[str, torch.Tensor]:
    recorder = InputRecorder(network, layers, rows_per_call, seed)
    try:
        sample()
    finally:
        recorder.close()
    return {name: recorder.rows(name) for name in layers}


def record(network: Any, layers: Sequence[str] = USED, **changes: Any) -> Any:
    return record_inputs(network, layers, lambda: run_calls(network), **changes)


def test_record_inputs_takes_rows_of_every_call(network: TinyNetwork) -> None:
    found = record(network)
    assert {n: tuple(r.shape) for n, r in found.items()} == {
        "first": (18, 21),
        "block.1": (18, 16),
    }
    for i, x in enumerate(CALLS):
        rows = x.reshape(-1, 21).tolist()  # [2, 5, 21] -> [10, 21]
        at = [rows.index(row) for row in found["first"][3 * i : 3 * i + 3].tolist()]
        assert at == sorted(set(at))  # three different rows of this very call, in order
    assert hooks(network) == 0


def test_record_inputs_takes_all_rows_of_a_small_call(network: TinyNetwork) -> None:
    found = record(network, rows_per_call=100)
    assert torch.equal(found["first"], torch.cat(CALLS).reshape(-1, 21))


def test_record_inputs_is_a_function_of_the_seed(network: TinyNetwork) -> None:
    first, again, other = record(network), record(network), record(network, seed=1)
    assert all(torch.equal(first[name], again[name]) for name in USED)
    assert not torch.equal(first["first"], other["first"])


def test_recorded_rows_are_copies(network: TinyNetwork) -> None:
    x = normal(4, 21)
    kept = x.clone()

    def sample() -> None:
        network(x)
        x.zero_()

    found = record_inputs(network, ["first"], sample, rows_per_call=4, seed=0)
    assert torch.equal(found["first"], kept)


def test_record_inputs_widens_half_precision(network: TinyNetwork) -> None:
    half = copy.deepcopy(network).to(torch.bfloat16)
    recorder = InputRecorder(half, ["first"], rows_per_call=2, seed=0)
    half(normal(2, 21).to(torch.bfloat16))
    recorder.close()
    assert recorder.rows("first").dtype == torch.float32


def test_hooks_go_after_an_exception(network: TinyNetwork) -> None:
    def sample() -> None:
        network(CALLS[0])
        assert hooks(network) == 2
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        record_inputs(network, USED, sample, rows_per_call=1, seed=0)
    assert hooks(network) == 0


def test_layer_that_never_runs(network: TinyNetwork) -> None:
    with pytest.raises(UsageError, match="layer idle was never run while sampling"):
        record(network, ("first", "idle"))
    assert hooks(network) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite(network: TinyNetwork, value: float) -> None:
    x = CALLS[0].clone()
    x[:, :, 0] = value
    with pytest.raises(
        UsageError, match="layer first: the float model's own activations hold NaN"
    ):
        record_inputs(network, ["first"], lambda: network(x), rows_per_call=1, seed=0)


def test_call_recorder_keeps_the_calls_asked_for(network: TinyNetwork) -> None:
    recorder = CallRecorder(network, [0, 4, 4])
    run_calls(network)
    network(x=CALLS[0])  # not asked for
    recorder.close()
    assert hooks(network) == 0
    kept = [args[0] for args, _ in recorder.calls]
    assert [next(i for i, x in enumerate(CALLS) if x is k) for k in kept] == [0, 4]


def test_call_recorder_keeps_keywords(network: TinyNetwork) -> None:
    recorder = CallRecorder(network, [1])
    network(x=CALLS[0])
    network(x=CALLS[1])
    recorder.close()
    ((args, kwargs),) = recorder.calls
    assert args == ()
    assert kwargs["x"] is CALLS[1]


# --- simulation --------------------------------------------------------------------------------


def layer_of(linear: Any, spec: LayerSpec, name: str = "first") -> QuantizedLayer:
    return quantize_layer(name, linear.weight, spec)


def state_of(network: Any, spec: LayerSpec = SPEC, names: Sequence[str] = USED) -> QuantizedState:
    return QuantizedState({n: layer_of(network.get_submodule(n), spec, n) for n in names})


def test_float_activations_compute_the_dequantized_linear(network: TinyNetwork) -> None:
    layer = layer_of(network.first, LayerSpec.of("e2m1", None, 8))
    weight = torch.from_numpy(layer.weight())
    for bias in (network.first.bias, None):
        wanted = torch.nn.functional.linear(CALLS[0], weight, bias)
        assert_same(wanted.numpy(), SimulatedLinear(layer, bias)(CALLS[0]))


@pytest.mark.parametrize("act", [None, "e2m3", "e3m4", "int8", "e4m3"])
@pytest.mark.parametrize("weight_name", ["e2m1", "e3m0", "int8"])
def test_simulated_linear_is_the_reference(
    network: TinyNetwork, act: str | None, weight_name: str
) -> None:
    layer = layer_of(network.first, LayerSpec.of(weight_name, act, 8))
    x = CALLS[1].reshape(-1, 21).clone()  # [2, 5, 21] -> [10, 21]
    x[2], x[3, 0] = 0, torch.nan
    found = SimulatedLinear(layer, network.first.bias)(x).numpy()
    one = np.ones(1, np.float32)
    q, scale = numerics.quantize(x.numpy(), FORMATS[act]) if act else (x.numpy(), one)
    bias = network.first.bias.numpy()
    wanted = numerics.linear(q, scale, layer.integers(), layer.scale, bias, 8)
    bound = linear_rounding_bound(q, scale, layer.weight(), bias, layer.scale.shape[1])
    close = within(wanted, found, bound)
    assert close.ok, close.detail
    assert np.isnan(found[3]).all()
    assert np.isfinite(np.delete(found, 3, axis=0)).all()
    assert np.array_equal(found[2], bias)


def test_simulate_replaces_in_place(network: TinyNetwork) -> None:
    weights = {name: network.get_submodule(name).weight for name in USED}
    state = state_of(network)
    simulate(network, state)
    for name in USED:
        module = network.get_submodule(name)
        assert isinstance(module, SimulatedLinear)
        assert_same(state.layers[name].weight(), module.weight)
        assert not torch.equal(module.weight, weights[name])
    assert isinstance(network.idle, torch.nn.Linear)


def test_simulated_is_restored(network: TinyNetwork) -> None:
    before, wanted = {n: network.get_submodule(n) for n in USED}, network(CALLS[0])[0]
    with simulated(network, state_of(network)) as same:
        assert same is network
        assert not torch.equal(network(CALLS[0])[0], wanted)
    assert all(network.get_submodule(n) is before[n] for n in USED)
    assert torch.equal(network(CALLS[0])[0], wanted)


def test_simulated_is_restored_after_an_exception(network: TinyNetwork) -> None:
    before = network.first
    with pytest.raises(RuntimeError, match="stopped"), simulated(network, state_of(network)):
        raise RuntimeError("stopped")
    assert network.first is before


def test_state_of_another_shape(network: TinyNetwork) -> None:
    before = network.first
    other = layer_of(network.idle, SPEC, "block.1")
    state = QuantizedState({"first": layer_of(network.first, SPEC), "block.1": other})
    message = r"layer block\.1: the state has a weight of \(4, 21\), the model \(5, 16\)"
    with pytest.raises(UsageError, match=message), simulated(network, state):
        pass
    assert network.first is before
    with pytest.raises(UsageError, match=message):
        simulate(network, state)


def test_state_of_another_model(network: TinyNetwork) -> None:
    missing = QuantizedState({"second": layer_of(network.first, SPEC, "second")})
    with pytest.raises(UsageError, match="the state has layer second, the model has not"):
        simulate(network, missing)
    no_linear = QuantizedState({"block.0": layer_of(network.first, SPEC, "block.0")})
    with pytest.raises(UsageError, match=r"layer block\.0: .* the model None"):
        simulate(network, no_linear)


# --- calibrate ---------------------------------------------------------------------------------


def calibrated(network: Any, spec: LayerSpec = SPEC, seed: int = 0) -> Calibration:
    return calibrate(
        whole(network),
        dict.fromkeys(USED, spec),
        method_by_name("fp-rtn"),
        Sampler(lambda on_call, _: run_calls(network, on_call), calls=len(CALLS)),
        seed=seed,
        provenance={"seed": seed},
        reporter=SilentReporter(),
    )


def test_calibrate_measures_what_it_made(network: TinyNetwork) -> None:
    modules = list(network.modules())
    found = calibrated(network)
    assert list(network.modules()) == modules
    assert hooks(network) == 0
    assert found.state.provenance == {"seed": 0}

    rows = record(network, rows_per_call=ROWS_PER_CALL, seed=(0, 0))
    for name in USED:
        linear, layer = network.get_submodule(name), found.state.layers[name]
        simulation = SimulatedLinear(layer, linear.bias)
        assert found.errors[name].weight == sqnr_db(linear.weight, torch.tensor(layer.weight()))
        assert found.errors[name].output == sqnr_db(linear(rows[name]), simulation(rows[name]))

    indices = [len(CALLS) * i // MEASURED_CALLS for i in range(MEASURED_CALLS)]
    assert indices == [0, 1, 3, 4]
    signal = torch.cat([network(CALLS[i])[0] for i in indices])
    with simulated(network, found.state):
        noisy = torch.cat([network(CALLS[i])[0] for i in indices])
    assert found.model_sqnr_db == sqnr_db(signal, noisy)


def test_more_bits_less_noise(network: TinyNetwork) -> None:
    coarse = calibrated(network)
    fine = calibrated(network, LayerSpec.of("int8", None, 8))
    for name in USED:
        assert fine.errors[name].weight > coarse.errors[name].weight
        assert fine.errors[name].output > coarse.errors[name].output
    assert fine.model_sqnr_db > coarse.model_sqnr_db


def test_calibrate_is_deterministic(network: TinyNetwork, tmp_path: Path) -> None:
    first, again = calibrated(network), calibrated(network)
    save_state(first.state, tmp_path / "first")
    save_state(again.state, tmp_path / "again")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    assert (first.errors, first.model_sqnr_db) == (again.errors, again.model_sqnr_db)
    assert calibrated(network, seed=1).errors["first"].output != first.errors["first"].output


def test_calibrate_advances_the_progress(network: TinyNetwork) -> None:
    stages: list[tuple[str, int, list[int]]] = []

    class Recording(SilentReporter):
        def stage(self, name: str, total: int, unit: str = "") -> Any:
            steps: list[int] = []
            stages.append((name, total, steps))
            return contextlib.nullcontext(steps.append)

    calibrate(
        whole(network),
        {"first": SPEC},
        method_by_name("fp-rtn"),
        Sampler(lambda on_call, _: run_calls(network, on_call), calls=len(CALLS)),
        seed=0,
        provenance={},
        reporter=Recording(),
    )
    assert all(sum(steps) == total for _, total, steps in stages)
    assert [total for _, total, _ in stages] == [1, 6, 1, 1, 2 * MEASURED_CALLS]
    assert "to measure errors (--no-measure skips that)" in stages[1][0]


def test_sqnr_db_is_that_of_numpy() -> None:
    # One sum of 21 squares in float64 in two orders, and two logarithms of it: the sum is off by at
    # most 21 * 2^-52, so the decibels by 10 / ln(10) * 2 * 21 * 2^-52 and the roundings of a number
    # below 64: less than 1e-12.
    a, b = normal(3, 7), normal(3, 7, seed=1)
    found = np.array(sqnr_db(a, b))
    assert within(np.array(sqnr_db_numpy(a.numpy(), b.numpy())), found, np.array(1e-12)).ok
    assert sqnr_db(a, a) == float("inf")
