"""Calibration in torch: the grid against numpy, recording, the simulation, and the whole of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch

from fp4dit_onnx import numerics
from fp4dit_onnx.calibration import grid
from fp4dit_onnx.calibration.capture import CallRecorder, InputRecorder, record_inputs
from fp4dit_onnx.calibration.methods import quantize_layer
from fp4dit_onnx.calibration.ranges import absmax_scale, group_absmax, storable
from fp4dit_onnx.calibration.rounding import round_to_nearest
from fp4dit_onnx.calibration.run import (
    MEASURED_CALLS,
    ROWS_PER_CALL,
    Calibration,
    calibrate,
    sqnr_db,
)
from fp4dit_onnx.calibration.sampling import BATCH, load_pipeline, network_calls, sample_latents
from fp4dit_onnx.calibration.simulate import SimulatedLinear, simulate, simulated
from fp4dit_onnx.checkpoint import open_checkpoint
from fp4dit_onnx.compare import linear_rounding_bound, same_bits, within
from fp4dit_onnx.compare import sqnr_db as sqnr_db_numpy
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.formats import FORMATS, FloatFormat
from fp4dit_onnx.methods import METHODS, RoundToNearest
from fp4dit_onnx.models import Family, family_of
from fp4dit_onnx.progress import SilentReporter
from fp4dit_onnx.recipe import LayerSpec
from fp4dit_onnx.runtime.pipeline import Sampling, initial_latents
from fp4dit_onnx.state import QuantizedLayer, QuantizedState, save_state

Array = npt.NDArray[Any]

EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
SPEC = LayerSpec("e2m1", "e2m3", 8)


def assert_same(wanted: Array, found: Any) -> None:
    same = same_bits(wanted, found.numpy())
    assert same.ok, same.detail


def normal(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the grid ----------------------------------------------------------------------------------


def points(fmt: FloatFormat) -> Array:
    """Grid points, midpoints, the float32 neighbours of both, of either sign; beyond; random."""
    exact = np.concatenate([fmt.magnitudes, (fmt.magnitudes[:-1] + fmt.magnitudes[1:]) / 2])
    middle = exact.astype(np.float32)
    around = [
        middle,
        np.nextafter(middle, np.float32(np.inf)),
        np.nextafter(middle, np.float32(0)),
    ]
    beyond = np.array([1.5 * fmt.max_integer, np.finfo(np.float32).max], np.float32)
    noise = np.random.default_rng(0).uniform(0, 1.1 * fmt.max_integer, 5000).astype(np.float32)
    positive = np.concatenate([*around, beyond, noise])
    return np.concatenate([positive, -positive])


@EVERY_FORMAT
def test_round_to_grid(fmt: FloatFormat) -> None:
    t = points(fmt)
    wanted, found = numerics.round_to_grid(t, fmt), grid.round_to_grid(torch.from_numpy(t), fmt)
    assert_same(wanted, found)
    assert_same(np.signbit(wanted), torch.signbit(found))


@EVERY_FORMAT
def test_binade_step_is_the_distance_of_neighbours(fmt: FloatFormat) -> None:
    below, above = fmt.magnitudes[:-1], fmt.magnitudes[1:]
    inside = torch.from_numpy(((below + above) / 2).astype(np.float32))
    start = torch.from_numpy(below.astype(np.float32))
    wanted = (above - below).astype(np.float32)
    assert_same(wanted, grid.binade_step(inside, fmt))
    assert_same(wanted, grid.binade_step(start, fmt))


def special_rows() -> Array:
    rows = np.zeros((9, 6), np.float32)
    rows[1] = 2.0**-91
    rows[2, 0], rows[3, 1], rows[4, 2] = np.nan, np.inf, -np.inf
    rows[5, :2] = np.nan, np.inf
    rows[6] = -0.0
    rows[7, :3] = np.finfo(np.float32).max, -np.finfo(np.float32).max, 1
    rows[8, :3] = 2.0**-89, -(2.0**-90), 2.0**-149
    return rows


def rows_near_ties(fmt: FloatFormat) -> Array:
    """Rows [50, 25] whose elements, once scaled, lie within an ulp or two of a midpoint."""
    random = np.random.default_rng(9)
    middle = (fmt.magnitudes[:-1] + fmt.magnitudes[1:]) / 2
    amax = (10.0 ** random.uniform(-20, 20, (50, 1))).astype(np.float32)
    x = (amax * random.choice(middle, (50, 8)) / fmt.max_integer).astype(np.float32)
    up, down = np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(0))
    return np.concatenate([-amax, x, up, -down], axis=1)


@EVERY_FORMAT
def test_quantize_rows_next_to_ties(fmt: FloatFormat) -> None:
    x = rows_near_ties(fmt)
    q, _ = grid.quantize_rows(torch.from_numpy(x), fmt)
    assert_same(numerics.quantize(x, fmt)[0].astype(np.float32), q)


@EVERY_FORMAT
def test_quantize_rows_on_both_sides_of_zero(fmt: FloatFormat) -> None:
    edge = numerics.SMALLEST_AMAX
    x = np.array([[edge, 0], [np.nextafter(edge, np.float32(0)), 0]], np.float32)
    q, scale = grid.quantize_rows(torch.from_numpy(x), fmt)
    wanted_q, wanted_scale = numerics.quantize(x, fmt)
    assert_same(wanted_q.astype(np.float32), q)
    assert_same(wanted_scale, scale)
    assert (scale.ravel() > 0).tolist() == [True, False]


@EVERY_FORMAT
def test_quantize_rows(fmt: FloatFormat) -> None:
    random = np.random.default_rng(1)
    noise = random.standard_normal((200, 6)) * 10.0 ** random.uniform(-25, 37, (200, 1))
    x = np.concatenate([special_rows(), noise.astype(np.float32)])
    q, scale = grid.quantize_rows(torch.from_numpy(x), fmt)
    wanted_q, wanted_scale = numerics.quantize(x, fmt)
    assert_same(wanted_q.astype(np.float32), q)
    assert_same(wanted_scale, scale)


def test_quantize_rows_any_rank() -> None:
    x = normal(2, 3, 7)
    q, scale = grid.quantize_rows(x, FORMATS["e3m4"])
    wanted_q, wanted_scale = numerics.quantize(x.numpy(), FORMATS["e3m4"])
    assert_same(wanted_q.astype(np.float32), q)
    assert_same(wanted_scale, scale)


def test_expand_groups() -> None:
    scale = normal(3, 4)
    assert_same(numerics.expand_groups(scale.numpy(), 13, 4), grid.expand_groups(scale, 13, 4))


# --- weights -----------------------------------------------------------------------------------


def test_group_absmax_of_a_short_group() -> None:
    weight = torch.tensor([[1.0, -2, 3, 0.5, -4], [0, 0, 0, 0, 0]])
    assert group_absmax(weight, 2).tolist() == [[2, 3, 4], [0, 0, 0]]


@EVERY_FORMAT
@pytest.mark.parametrize("k", [24, 21])
def test_absmax_scale(fmt: FloatFormat, k: int) -> None:
    weight = normal(5, k) * 100
    weight[1, 8:16] = 0
    found = absmax_scale(weight, fmt, 8)
    padded = np.pad(np.abs(weight.numpy()), ((0, 0), (0, -k % 8))).reshape(5, 3, 8)
    exact = padded.max(axis=-1) / np.float32(fmt.max_integer)  # [N, G, group] -> [N, G]
    fits = fmt.name != "e5m2"  # 100 / 2^31.8 is below float16's normal numbers
    assert found.dtype == (torch.float16 if fits else torch.float32)
    assert_same(exact.astype(np.float16 if fits else np.float32), found)
    assert found[1, 1] == 0


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        ([0.0, 0.0], torch.float16),
        ([2.0**-14, 65504.0, 0.0], torch.float16),
        ([float(np.nextafter(np.float32(2.0**-14), np.float32(0))), 1.0], torch.float32),
        ([float(np.nextafter(np.float32(65504), np.float32(np.inf))), 1.0], torch.float32),
    ],
)
def test_storable_is_float16_where_all_scales_are_normal(scale: list[float], dtype: Any) -> None:
    found = storable(torch.tensor(scale))
    assert found.dtype == dtype
    assert found.tolist() == scale


def test_absmax_scale_of_a_tiny_group_is_zero() -> None:
    weight = torch.tensor([[2.0**-91, 0, 1, 1]])
    assert absmax_scale(weight, FORMATS["int8"], 2)[0, 0] == 0


@EVERY_FORMAT
@pytest.mark.parametrize("k", [24, 21])
def test_round_to_nearest_gives_the_codes_of_numpy(fmt: FloatFormat, k: int) -> None:
    weight = normal(6, k)
    weight[2, :8], weight[3, :] = 0, -0.0
    scale = absmax_scale(weight, fmt, 8)
    found = numerics.encode(round_to_nearest(weight, scale, fmt, 8).numpy(), fmt)
    assert same_bits(numerics.quantize_groups(weight.numpy(), scale.numpy(), fmt, 8), found).ok
    smaller = scale * 0.5  # saturates
    found = numerics.encode(round_to_nearest(weight, smaller, fmt, 8).numpy(), fmt)
    assert same_bits(numerics.quantize_groups(weight.numpy(), smaller.numpy(), fmt, 8), found).ok


@pytest.mark.parametrize("name", ["e2m1", "e3m0", "e2m3", "int8"])
def test_quantize_layer(name: str) -> None:
    weight, spec, fmt = normal(4, 21), LayerSpec(name, None, 8), FORMATS[name]
    layer = quantize_layer("a.b", weight, normal(3, 21), spec, METHODS["rtn"])
    scale = absmax_scale(weight, fmt, 8).numpy()
    codes = numerics.quantize_groups(weight.numpy(), scale, fmt, 8)
    assert (layer.name, layer.spec, layer.k) == ("a.b", spec, 21)
    assert same_bits(layer.scale, scale).ok
    assert same_bits(layer.codes, numerics.pack(codes, fmt.storage_bits)).ok


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_quantize_layer_refuses_a_weight_that_is_not_finite(value: float) -> None:
    weight = normal(4, 16)
    weight[3, 15] = value
    with pytest.raises(UsageError, match=r"layer blocks\.0\.fc: its weight holds NaN or infinity"):
        quantize_layer("blocks.0.fc", weight, normal(2, 16), SPEC, RoundToNearest())


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


def record(network: Any, layers: Sequence[str] = USED, **changes: int) -> Any:
    options = {"rows_per_call": 3, "seed": 0, **changes}
    return record_inputs(network, layers, lambda: run_calls(network), **options)


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
    return quantize_layer(name, linear.weight, linear.weight, spec, RoundToNearest())


def state_of(network: Any, spec: LayerSpec = SPEC, names: Sequence[str] = USED) -> QuantizedState:
    return QuantizedState({n: layer_of(network.get_submodule(n), spec, n) for n in names})


def test_float_activations_compute_the_dequantized_linear(network: TinyNetwork) -> None:
    layer = layer_of(network.first, LayerSpec("e2m1", None, 8))
    weight = torch.from_numpy(layer.weight())
    for bias in (network.first.bias, None):
        wanted = torch.nn.functional.linear(CALLS[0], weight, bias)
        assert_same(wanted.numpy(), SimulatedLinear(layer, bias)(CALLS[0]))


@pytest.mark.parametrize("act", [None, "e2m3", "e3m4", "int8", "e4m3"])
@pytest.mark.parametrize("weight_name", ["e2m1", "e3m0", "int8"])
def test_simulated_linear_is_the_reference(
    network: TinyNetwork, act: str | None, weight_name: str
) -> None:
    layer = layer_of(network.first, LayerSpec(weight_name, act, 8))
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
        network,
        dict.fromkeys(USED, spec),
        RoundToNearest(),
        lambda on_call: run_calls(network, on_call),
        calls=len(CALLS),
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

    rows = record(network, rows_per_call=ROWS_PER_CALL)
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
    fine = calibrated(network, LayerSpec("int8", None, 8))
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
        def stage(self, name: str, total: int) -> Any:
            steps: list[int] = []
            stages.append((name, total, steps))
            return contextlib.nullcontext(steps.append)

    calibrate(
        network,
        {"first": SPEC},
        RoundToNearest(),
        lambda on_call: run_calls(network, on_call),
        calls=len(CALLS),
        seed=0,
        provenance={},
        reporter=Recording(),
    )
    assert [(total, sum(steps)) for _, total, steps in stages] == [(6, 6), (1, 1)]


def test_sqnr_db_is_that_of_numpy() -> None:
    # One sum of 21 squares in float64 in two orders, and two logarithms of it: the sum is off by at
    # most 21 * 2^-52, so the decibels by 10 / ln(10) * 2 * 21 * 2^-52 and the roundings of a number
    # below 64: less than 1e-12.
    a, b = normal(3, 7), normal(3, 7, seed=1)
    found = np.array(sqnr_db(a, b))
    assert within(np.array(sqnr_db_numpy(a.numpy(), b.numpy())), found, np.array(1e-12)).ok
    assert sqnr_db(a, a) == float("inf")


# --- sampling ----------------------------------------------------------------------------------


class FakePipeline:
    """Records its calls; the latents it returns are the noise plus the prompt's length."""

    def __init__(self) -> None:
        self.transformer = torch.nn.Identity()
        self.transformer.config = SimpleNamespace(sample_size=4, in_channels=3)
        self.batches: list[list[str]] = []
        self.options: dict[str, Any] = {}

    def __call__(self, prompt: list[str], latents: Any, **options: Any) -> SimpleNamespace:
        """As diffusers' pipelines are called."""
        self.batches.append(prompt)
        self.options = options
        for _ in range(options["num_inference_steps"]):
            self.transformer(latents)
        if "fail" in prompt:
            raise RuntimeError("stopped")
        lengths = torch.tensor([len(p) for p in prompt]).reshape(-1, 1, 1, 1)
        return SimpleNamespace(images=latents + lengths)


FAMILY = family_of("PixArtAlphaPipeline", "PixArtTransformer2DModel")
TWO_STEPS = Sampling(steps=2, guidance=3.0, height=32, width=48, max_sequence_length=17)


def test_sample_latents_hands_on_prompts_seeds_and_options() -> None:
    pipeline = FakePipeline()
    prompts = ["x" * i for i in range(BATCH + 3)]
    seeds = list(range(100, 100 + len(prompts)))
    calls: list[None] = []
    found = sample_latents(pipeline, FAMILY, prompts, seeds, TWO_STEPS, lambda: calls.append(None))
    assert pipeline.batches == [prompts[:BATCH], prompts[BATCH:]]
    wanted = np.stack(
        [initial_latents(seed, (3, 4, 4)) + np.float32(i) for i, seed in enumerate(seeds)]
    )
    assert_same(wanted, found)
    assert len(calls) == network_calls(len(prompts), 2) == 4
    assert hooks(pipeline.transformer) == 0
    assert pipeline.options == {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "height": 32,
        "width": 48,
        "max_sequence_length": 17,
        "output_type": "latent",
        **FAMILY.pipeline_options,
    }


def test_sample_latents_removes_its_hook_after_an_exception() -> None:
    pipeline = FakePipeline()
    with pytest.raises(RuntimeError, match="stopped"):
        sample_latents(pipeline, FAMILY, ["fail"], [0], TWO_STEPS)
    assert hooks(pipeline.transformer) == 0


@pytest.mark.parametrize(("prompts", "calls"), [(0, 0), (1, 5), (BATCH, 5), (BATCH + 1, 10)])
def test_network_calls(prompts: int, calls: int) -> None:
    assert network_calls(prompts, 5) == calls


@pytest.fixture(scope="module")
def demo(demo_folder: Path) -> tuple[Any, Family, Sampling]:
    checkpoint = open_checkpoint(demo_folder)
    pipeline = load_pipeline(checkpoint)
    family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
    pixels = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    return pipeline, family, Sampling(2, 3.0, pixels, pixels, 16)


def test_load_pipeline(demo: tuple[Any, Family, Sampling]) -> None:
    parameters = [*demo[0].transformer.parameters(), *demo[0].text_encoder.parameters()]
    assert {p.dtype for p in parameters} == {torch.float32}
    assert not any(p.requires_grad for p in parameters)
    assert not demo[0].transformer.training


def test_sample_latents_of_the_demo(demo: tuple[Any, Family, Sampling]) -> None:
    pipeline, family, sampling = demo
    prompts, seeds = ["a red circle", "a large blue square", "a green triangle"], [3, 1, 2]
    batch = sample_latents(pipeline, family, prompts, seeds, sampling)
    size = pipeline.transformer.config.sample_size
    assert tuple(batch.shape) == (3, pipeline.transformer.config.in_channels, size, size)
    assert bool(torch.isfinite(batch).all())
    assert torch.equal(batch, sample_latents(pipeline, family, prompts, seeds, sampling))

    # A batch only changes the order of float32 sums. Fewer than 2^12 roundings lie on a path through
    # one operator (the longest sum has 768 terms) and fewer than 2^10 operators on one through two
    # steps: fewer than 2^22 roundings of 2^-24 each, which as independent errors add up to their square
    # root (Higham and Mary 2019, A new approach to probabilistic rounding error analysis).
    bound = np.asarray(2.0**11 * 2.0**-24 * float(batch.abs().max()))
    (alone,) = sample_latents(pipeline, family, prompts[1:2], seeds[1:2], sampling).numpy()
    close = within(batch[1].numpy(), alone, bound)
    assert close.ok, close.detail
    others = sample_latents(pipeline, family, prompts[:2], [seeds[1], seeds[0]], sampling)
    for other in others.numpy():  # another prompt, another seed
        assert not within(alone, other, bound).ok
