"""Calibration on a device: all of it, and nothing that a device refuses."""

from __future__ import annotations

import gc
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from pretend_device import PRETEND, PretendDevice
from torch.nn.attention import SDPBackend, sdpa_kernel
from toy_network import LAYERS, PICTURES, sampler_of, toy_network
from twins import Planned, planned_twins

from fp4dit_onnx.bundle.calibration_notes import Calibrated
from fp4dit_onnx.calibration.evidence import outputs_of
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.recipe_tables import method_names, recipe_table
from fp4dit_onnx.calibration.run import Calibration, calibrate
from fp4dit_onnx.calibration.samples import Array
from fp4dit_onnx.calibration.sampling import load_pipeline, pipeline_sampler
from fp4dit_onnx.calibration.work import Work, model_digest
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.evaluation.picturing import float_images
from fp4dit_onnx.exporting.export import export
from fp4dit_onnx.exporting.plan import Plan
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.network import execution
from fp4dit_onnx.network.execution import HOST, Execution, execution_of
from fp4dit_onnx.network.network import Network, whole
from fp4dit_onnx.network.stored import opened
from fp4dit_onnx.network.streaming import cast_rest
from fp4dit_onnx.runtime.sampling import Sampling
from fp4dit_onnx.spec.spec import LayerSpec, TensorSpec
from fp4dit_onnx.spec.state import save_state
from fp4dit_onnx.system.executors import LOCAL, Executor
from fp4dit_onnx.system.progress import SilentReporter

DEVICE = Execution(PRETEND)
SPEC = LayerSpec.of("e2m1", "e2m3", 8)
LIMIT = 3 * 2**19
FOUR_OVER_SIX = replace(SPEC, input=TensorSpec.of_activations("e2m1", 8))
SPECS = {**dict.fromkeys(LAYERS, SPEC), "blocks.0.mix": FOUR_OVER_SIX}


def placed(where: Execution) -> Network:
    """The toy network where `where` says, its weights known in float32."""
    module = toy_network()
    stored = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    cast_rest(module, where)
    return replace(whole(module), read=stored.__getitem__, execution=where)


class OfToy:
    """Gives the parts of the toy network anywhere, as `StoredParts` those of a checkpoint."""

    execution = HOST

    def materialize(self, name: str, execution: Execution | None = None) -> Any:
        """As `Network` does."""
        return placed(HOST).materialize(name, execution)

    def tensor(self, name: str) -> Any:
        """As `Network` does."""
        return placed(HOST).tensor(name)


class Sent:
    """Makes calls as another machine gets them: function, arguments and result are pickled."""

    ahead = 1

    def __init__(self) -> None:
        self.calls = 0

    def results(self, tasks: Any) -> Any:
        """As `Executor`; what a call changes of its arguments is lost."""
        for task in tasks:
            function, arguments = pickle.loads(pickle.dumps((task.function, task.arguments)))
            self.calls += 1
            yield task, pickle.loads(pickle.dumps(function(*arguments)))


def calibrated(
    name: str,
    folder: Path,
    where: Execution,
    network: Network | None = None,
    executor: Executor = LOCAL,
) -> Calibration:
    quick = {"iterations": 3} if method_by_name(name).iterations else {}
    method = method_by_name(name, "fast", samples=16, prompts=PICTURES, **quick)
    network = network or placed(where)
    scale = recipe_table(name).get("export", {}).get("scale", SPEC.weight.scale)
    return calibrate(
        network,
        {layer: spec.with_weight(scale=scale) for layer, spec in SPECS.items()},
        method,
        sampler_of(network.module),
        seed=0,
        provenance={},
        reporter=SilentReporter(),
        work=Work(folder, {}),
        executor=executor,
        parts=None if executor is LOCAL else OfToy(),
        candidates=dict.fromkeys(LAYERS, ("e2m1", "e1m2", "e3m0")),
    )


def saved(found: Calibration, path: Path) -> bytes:
    save_state(found.state, path)
    return path.read_bytes()


@pytest.mark.parametrize("name", method_names())
def test_every_method_runs_on_a_device(name: str, tmp_path: Path) -> None:
    """Operands are never on two devices, none is read there, none is float64; the bits are the CPU's.

    So they are where units are solved by calls whose arguments come from elsewhere.
    """
    sent = Sent()
    with PretendDevice() as device:
        there = calibrated(name, tmp_path / "there", DEVICE)
    here = calibrated(name, tmp_path / "here", HOST, executor=sent)
    assert bool(sent.calls) == method_by_name(name).needs_data
    assert device.ran > 100
    assert saved(there, tmp_path / "a") == saved(here, tmp_path / "b")
    assert there.errors == here.errors
    assert there.model_sqnr_db == here.model_sqnr_db


# --- whole pipelines ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """Plans a calibration of twins of official models."""
    return planned_twins(tmp_path_factory.mktemp("twins"))


def pipeline_state(made: Plan, folder: Path, where: Execution, budget: float) -> bytes:
    """The state's file after the smallest calibration through the pipeline of a plan."""
    interface = made.family.interface(made.checkpoint.transformer_config)
    network = opened(made.checkpoint.components["transformer"], interface, budget, where)
    pipeline = load_pipeline(made.checkpoint, network, budget, calibrates=True, execution=where)
    sampler = pipeline_sampler(pipeline, made.family, made.prompts, [3, 4], made.sampling, where)
    found = calibrate(
        network,
        made.specs,
        method_by_name("fp-adaround", "fast", iterations=1, samples=4, prompts=2),
        sampler,
        seed=0,
        provenance={},
        reporter=SilentReporter(),
        attention=made.attention,
        work=Work(folder, {"model": model_digest(network)}),
    )
    assert found.model_sqnr_db > 5
    return saved(found, folder / "state")


@pytest.mark.parametrize(
    ("name", "limit"), [("pixart-alpha-512", math.inf), ("hunyuan-dit-1.1", LIMIT)]
)
def test_pipelines_run_on_a_device(
    planned: Planned, name: str, limit: float, tmp_path: Path
) -> None:
    """Text encoders, samplers and networks, in the device's memory and brought there block by block."""
    made, budget = planned(name), 2**40
    with sdpa_kernel(SDPBackend.MATH):  # what torch takes for a device that it does not know
        here = pipeline_state(made, tmp_path / "here", HOST, budget)
        with PretendDevice():
            where = replace(DEVICE, limit=limit)
            there = pipeline_state(made, tmp_path / "there", where, budget)
    assert here == there


def test_a_limit_bounds_the_weights_on_the_device(planned: Planned) -> None:
    """Without one all of them are there; with one what is around the blocks, and a block at a time."""
    made = planned("pixart-alpha-512")
    component = made.checkpoint.components["transformer"]
    interface = made.family.interface(made.checkpoint.transformer_config)
    held = []
    with PretendDevice() as device:
        for limit in (math.inf, LIMIT):
            before, where = device.now, replace(DEVICE, limit=limit)
            network = opened(component, interface, 2**40, where)
            pipeline = load_pipeline(
                made.checkpoint, network, 2**40, calibrates=True, execution=where
            )
            held.append(device.now - before)
            del network, pipeline
            gc.collect()
    weights = sum(math.prod(t.shape) * 4 for t in made.checkpoint.tensors.values())
    assert held[1] <= LIMIT < weights <= held[0]


def test_float_images_are_computed_there(
    monkeypatch: pytest.MonkeyPatch, demo_folder: Path
) -> None:
    """What `evaluate` and reports compare with."""
    given = demo_folder, ["a red circle"], [1], Sampling(2, 3.0, 64, 64, 16)
    with sdpa_kernel(SDPBackend.MATH), PretendDevice() as device:
        (here,) = float_images(*given)
        assert device.ran == 0
        monkeypatch.setattr(execution, "execution_of", lambda name: DEVICE)
        (there,) = float_images(*given, device="there")
    assert device.ran > 100
    assert here.tobytes() == there.tobytes()


# --- half precision ----------------------------------------------------------------------------


class Notes(SilentReporter):
    """Keeps notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        """See `Reporter`."""
        self.lines.append(text)


def test_half_precision_learns_too(planned: Planned, tmp_path: Path) -> None:
    made = planned("pixart-alpha-512")
    asked = replace(
        made.request,
        output=tmp_path / "bundle",
        bits="w4a32",
        preset="fast",
        iterations=60,
        samples=16,
        components="transformer",
        precision="bfloat16",
        device="cpu",
        state=tmp_path / "trained",
        report=False,
    )
    notes = Notes()
    manifest = export(asked, notes).manifest
    assert manifest.calibrated == Calibrated("cpu", "bfloat16")
    assert manifest.model_sqnr_db is not None
    told = [float(n.partition("error ")[2].split()[0]) for n in notes.lines if "nearest" in n]
    assert len(told) > 2
    assert sum(told) / len(told) < 0.95


class Adding(torch.nn.Module):
    """A block that adds little to what it receives."""

    def __init__(self, error: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        weight = torch.randn(64, 64) / 8
        self.weight = torch.nn.Parameter(weight * (1 + error * torch.randn(64, 64)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 or less, [B, 64] to [B, 64]."""
        return x + 0.01 * torch.nn.functional.linear(x, self.weight)


def test_half_precision_shows_what_rounding_changes() -> None:
    """The last bit of the sum, in half precision, is as large as 0.1 of what the block adds."""

    @torch.no_grad()
    def error(where: Execution) -> float:
        call = (torch.linspace(-4, 4, 64 * 64).reshape(64, 64).bfloat16(),), {}
        (wanted,), (found,) = (outputs_of(Adding(e), call, (0,), where) for e in (0, 0.1))
        assert wanted.dtype == torch.float32
        return float((wanted - found).square().mean())

    assert error(Execution(dtype=torch.bfloat16)) == pytest.approx(error(HOST), rel=0.05)


def test_activations_in_half_precision_are_recorded_as_such(tmp_path: Path) -> None:
    where = Execution(dtype=torch.bfloat16)
    array, values = Array(tmp_path / "a.npy", where), torch.randn(4, 3).bfloat16()
    array.create(8, values)
    array.write(2, values)
    assert (tmp_path / "a.npy").stat().st_size < 8 * 3 * 2 + 256
    assert torch.equal(array.read(torch.tensor([5, 2])), values[[3, 0]])
    assert array.read(slice(0, 2)).dtype == torch.bfloat16


def test_weights_are_rounded_from_float32_in_half_precision(tmp_path: Path) -> None:
    """Methods that look at weights alone give the same codes in any precision."""
    half = calibrated("fp-rtn", tmp_path / "half", Execution(dtype=torch.bfloat16))
    full = calibrated("fp-rtn", tmp_path / "full", HOST)
    assert saved(half, tmp_path / "a") == saved(full, tmp_path / "b")
    assert half.model_sqnr_db == pytest.approx(full.model_sqnr_db, abs=1)


@pytest.mark.parametrize("name", ["fp4dit", "tuned"])
def test_an_overflow_in_half_precision_names_the_block(name: str, tmp_path: Path) -> None:
    network = placed(HOST)
    network.module.blocks[1].mix.bias.fill_(3.4e38)  # finite in float32
    network = replace(network, execution=Execution(dtype=torch.bfloat16))
    cast_rest(network.module, network.execution)
    with pytest.raises(
        UsageError, match=r"block blocks.1: its results hold NaN .* --precision float32"
    ):
        calibrated(name, tmp_path / "w", network.execution, network=network)


# --- devices that are not there, or too small --------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--device tpu", "unknown device 'tpu': expected auto, cpu, cuda, mps, xpu"),
        ("--device cuda:x", "unknown device 'cuda:x'"),
        ("--device mps:1", "unknown device 'mps:1'"),
        ("--device xpu", "device xpu: torch .* finds cpu, cuda:0, cuda:1 here; use --device cpu"),
        ("--device cuda:2", "device cuda:2: torch .* finds cpu, cuda:0, cuda:1 here"),
        ("--precision float16", "unknown precision 'float16': expected float32 or bfloat16"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    run: Any, monkeypatch: pytest.MonkeyPatch, options: str, message: str
) -> None:
    monkeypatch.setattr(execution, "_count", {"cuda": 2, "mps": 0, "xpu": 0}.__getitem__)
    outcome = run("export", "--dry-run", *options.split())
    assert outcome.code == 2
    assert re.search(message, " ".join(outcome.err.split()))
    assert outcome.err.count("\n") < 4


def test_auto_is_the_first_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"cuda": 0, "mps": 0, "xpu": 0}
    monkeypatch.setattr(execution, "_count", there.__getitem__)
    assert execution_of("auto", "float32") == HOST
    there["xpu"] = 1
    assert execution_of("auto", "bfloat16") == Execution(torch.device("xpu"), torch.bfloat16)
    there |= {"cuda": 2, "mps": 1}
    assert execution_of("auto", "float32").device == torch.device("cuda")
    assert execution_of("cuda:1", "float32").device == torch.device("cuda:1")


def test_running_out_of_memory_says_what_to_set_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*given: Any, work: Work, **options: Any) -> None:
        work.save("importance", [1.0])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\n")

    monkeypatch.setattr("fp4dit_onnx.calibration.run.calibrate", full)
    asked = ExportRequest(output=tmp_path / "out", preset="fast", report=False)
    with pytest.raises(UsageError) as refused:
        export(asked)
    assert str(refused.value) == (
        "device cpu ran out of memory (CUDA out of memory): --precision bfloat16 halves what it takes; "
        "less --max-vram keeps fewer blocks and samples there at a time; --device cpu uses the "
        "machine's memory"
    )
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.calibration" / "importance.pt").exists()
