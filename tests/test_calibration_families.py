"""Calibration through the pipelines of other families than PixArt, on twins with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import numpy as np
import torch
from twins import Planned, planned_twins

from fp4dit_onnx.calibration.applying import quantize_layer
from fp4dit_onnx.calibration.capture import InputRecorder
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.run import calibrate, sqnr_db
from fp4dit_onnx.calibration.samples import Samples
from fp4dit_onnx.calibration.sampling import load_pipeline, pipeline_sampler, sample_latents
from fp4dit_onnx.calibration.simulate import SimulatedLinear
from fp4dit_onnx.calibration.work import Work, model_digest
from fp4dit_onnx.exporting.plan import Plan
from fp4dit_onnx.network.fake import is_fake
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.network.stored import opened
from fp4dit_onnx.network.streaming import StoredTensors
from fp4dit_onnx.runtime.sampling import initial_latents
from fp4dit_onnx.spec.recipe import make_recipe
from fp4dit_onnx.spec.state import save_state
from fp4dit_onnx.system.progress import SilentReporter

METHOD = method_by_name("fp-adaround", "fast", iterations=1, samples=8, prompts=2)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """Plans a calibration of twins of official models."""
    return planned_twins(tmp_path_factory.mktemp("twins"))


def opened_with(planned: Plan, budget: float) -> tuple[Network, Any]:
    """The transformer and the pipeline around it; blocks in memory as far as `budget` reaches."""
    checkpoint = planned.checkpoint
    interface = planned.family.interface(checkpoint.transformer_config)
    network = opened(checkpoint.components["transformer"], interface, budget)
    return network, load_pipeline(checkpoint, network, budget)


def sampled(planned: Plan, pipeline: Any) -> Any:
    prompts = planned.prompts
    return sample_latents(pipeline, planned.family, prompts, [3, 4], planned.sampling)


def calibrated(planned: Plan, folder: Path, budget: float = 2**40) -> bytes:
    """The state's file after the smallest calibration."""
    network, pipeline = opened_with(planned, budget)
    sampler = pipeline_sampler(pipeline, planned.family, planned.prompts, [3, 4], planned.sampling)
    work = Work(folder / "work", {"model": model_digest(network)})
    found = calibrate(
        network,
        planned.specs,
        METHOD,
        sampler,
        seed=0,
        provenance={},
        reporter=SilentReporter(),
        attention=planned.attention,
        work=work,
    )
    assert tuple(found.state.layers) == tuple(planned.specs)
    assert found.state.attention == planned.attention != {}
    if isinstance(network.read, StoredTensors):
        assert not network.read._kept  # sampling is over
    assert found.model_sqnr_db > 5
    save_state(found.state, folder / "state.safetensors")
    return (folder / "state.safetensors").read_bytes()


def halves(samples: Samples, planned: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors that vary, without the condition and with it."""
    args, kwargs = samples.take(slice(0, samples.count))
    named = {**kwargs, **({"hidden_states": args[0]} if args else {})}
    tensors = {
        k: v for k, v in named.items() if isinstance(v, torch.Tensor) and len(v) == samples.count
    }
    both = {name: planned.family.guidance.halves(t) for name, t in tensors.items()}
    return {n: first for n, (first, _) in both.items()}, {
        n: second for n, (_, second) in both.items()
    }


@pytest.mark.parametrize(
    ("name", "condition"),
    [
        ("dit-xl-2-256", "class_labels"),
        ("hunyuan-dit-1.1", "encoder_hidden_states"),
        ("sd3-medium", "encoder_hidden_states"),
        ("flux-dev", ""),
        ("auraflow", "encoder_hidden_states"),
        ("sana-1600m", "encoder_hidden_states"),
        ("z-image", ""),
        ("flux2-klein-4b", ""),
    ],
)
def test_a_family_is_calibrated_through_its_own_pipeline(
    planned: Planned, name: str, condition: str, tmp_path: Path
) -> None:
    made = planned(name)
    calibrated(made, tmp_path)
    samples = Work(
        tmp_path / "work", {"model": model_digest(opened_with(made, 0)[0])}
    ).load_samples("samples")
    assert samples is not None
    assert samples.paired == bool(condition)
    if condition:
        without, given = halves(samples, made)
        assert torch.equal(without["hidden_states"], given["hidden_states"])
        assert bool(
            (without[condition] == without[condition][:1]).all()
        )  # of every image the same
        assert not bool((given[condition] == without[condition]).all())


def test_a_scheduler_that_adds_noise_adds_the_same_every_time(planned: Planned) -> None:
    made = planned("hunyuan-dit-1.1")
    _, pipeline = opened_with(made, 2**40)
    assert type(pipeline.scheduler).__name__ == "DDPMScheduler"
    assert torch.equal(sampled(made, pipeline), sampled(made, pipeline))


def test_classes_begin_with_the_noise_of_their_seeds(planned: Planned) -> None:
    """DiT's pipeline takes no latents, and gives images."""
    made = planned("dit-xl-2-256")
    _, pipeline = opened_with(made, 2**40)
    seen: list[Any] = []
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    latents = sampled(made, pipeline)
    handle.remove()
    config = made.checkpoint.transformer_config
    shape = (config["in_channels"], config["sample_size"], config["sample_size"])
    assert tuple(latents.shape) == (2, *shape)
    noise = torch.from_numpy(np.stack([initial_latents(seed, shape) for seed in (3, 4)]))
    assert torch.equal(seen[0], torch.cat([noise, noise]))
    assert len(seen) == made.sampling.steps


def test_a_pipeline_without_room_computes_the_same(planned: Planned) -> None:
    """Blocks of transformer and text encoders are read for every call; hooks and stand-ins hold."""
    made = planned("sd3-medium")
    lean, lean_pipeline = opened_with(made, 0)
    full, full_pipeline = opened_with(made, 2**40)
    inner = lean.blocks[0]
    assert all(is_fake(p) for p in lean.module.get_submodule(inner).parameters())
    encoders = [lean_pipeline.components[n] for n in lean_pipeline.components if "text_enc" in n]
    assert all(any(is_fake(p) for p in encoder.parameters()) for encoder in encoders if encoder)
    layer = next(n for n in made.specs if n.startswith(f"{inner}."))
    rows = []
    for network, p in ((lean, lean_pipeline), (full, full_pipeline)):
        recorder = InputRecorder(network.module, [layer], rows_per_call=4, seed=0)
        sampled(made, p)
        recorder.close()
        rows.append(recorder.rows(layer))
    assert torch.equal(*rows)
    assert model_digest(lean) == model_digest(full)


def test_a_network_that_is_read_block_by_block_is_calibrated_to_the_same_bytes(
    planned: Planned, tmp_path: Path
) -> None:
    made = planned("pixart-alpha-512")
    for name in ("lean", "full"):
        (tmp_path / name).mkdir()
    assert calibrated(made, tmp_path / "lean", budget=2**17) == calibrated(made, tmp_path / "full")


@torch.no_grad()
def test_halves_of_a_long_skip_keep_their_precision(twin: Callable[[str], Any]) -> None:
    """One half of what the linear reads is 50 times the other's size, and its weights are smaller."""
    subject = twin("hunyuan-dit-1.1")
    network = copy.deepcopy(subject.network)
    sizes = {
        n: m.weight.shape for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)
    }
    joined = subject.family.joined(sizes)
    name = next(iter(joined))
    norm, linear = (
        network.get_submodule(name.replace("linear", part)) for part in ("norm", "linear")
    )
    half = linear.in_features // 2
    for values in (norm.weight, norm.bias):
        values[half:] *= 50
    linear.weight[:, half:] /= 50
    seen: list[Any] = []
    linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    args, kwargs = subject.call
    network(*args, **kwargs)
    wanted = linear(seen[0])
    recipe = make_recipe("w4a6", method=METHOD, paper_rules=subject.family.paper_rules)
    found = []
    for parts in ({}, joined):
        spec = recipe.assign(sizes, parts)[0][name]
        layer = quantize_layer(name, linear.weight, spec)
        found.append(sqnr_db(wanted, SimulatedLinear(layer, linear.bias)(seen[0])))
    alike, apart = found
    assert apart > alike + 6
