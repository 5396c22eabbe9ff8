"""Latents that stay in a device's memory become what those of the machine's memory become."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from scheduler_configs import ddim, ddpm, dpm, euler, flow, unipc

pytest.importorskip("onnxruntime")

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families import Family
from fp4dit_onnx.families.dit import DIT
from fp4dit_onnx.families.flux import FLUX
from fp4dit_onnx.families.pixart import PIXART_ALPHA
from fp4dit_onnx.families.request import Request
from fp4dit_onnx.families.z_image import Z_IMAGE
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.runtime.bound import Recorder
from fp4dit_onnx.runtime.denoising import Denoising, Made
from fp4dit_onnx.runtime.providers import CPU_PROVIDER, ON_CPU, Placement
from fp4dit_onnx.runtime.runs import start_run
from fp4dit_onnx.runtime.sampling import Sampling, step_noise
from fp4dit_onnx.runtime.schedulers import scheduler_from_config
from fp4dit_onnx.runtime.session import session

PRETEND = Placement("pretend:0", ((CPU_PROVIDER, {}),), ("cpu", 0))
"""A device with a memory of its own, which is the machine's."""
SHAPE, SEEDS = (4, 6, 8), (3, 5)
TURNED_DB = 100.0
"""float32 sums in another order; a wrong tap or half leaves less than 40 dB."""


def transformer(folder: Path, family: Family) -> Any:
    """Nonlinear, with the variance half where latents are not packed, and other rows for the text."""
    packed = family.latents.packing > 1
    rank = "n, c" if packed else "c, h, w"
    told = {"int64": "int64", "float32": "float"}[np.dtype(family.timestep.dtype).name]
    ones = "{1, 2}" if packed else "{1, 2, 3}"
    text = f"""<ir_version: 10, opset_import: ["": 21]>
    g (float[b, {rank}] hidden_states, {told}[b] timestep, float[b] text, float[1] slot = {{0}})
    => (float[b, {rank}] y)
    <int64[{2 if packed else 3}] axes = {ones}, float scale = {{0.001}}> {{
        t = Cast <to = 1> (timestep)
        scaled = Mul (t, scale)
        moved = Add (scaled, text)
        filled = Add (moved, slot)
        rows = Unsqueeze (filled, axes)
        sum = Add (hidden_states, rows)
        o = Tanh (sum)
        {"y = Identity (o)" if packed else "y = Concat <axis = 1> (o, hidden_states)"}
    }}"""
    model = onnx.parser.parse_model(text.replace("c, h, w] y", "d, h, w] y"))
    onnx.save(model, folder / "model.onnx")
    return session(folder / "model.onnx", library=False)


def denoising(folder: Path, family: Family, config: dict[str, Any], steps: int = 5) -> Denoising:
    sampling = Sampling(steps, 4.5, 64, 64, 16)
    request = Request(["a", "b"], "", sampling, family.guidance, {}, {})
    scheduler = scheduler_from_config(config)
    text = np.linspace(-0.4, 0.6, request.rows, dtype=np.float32)
    return Denoising(
        transformer(folder, family),
        family,
        request,
        {"text": text},
        partial(start_run, family, scheduler, steps, 12),
        partial(step_noise, SEEDS, shape=SHAPE) if scheduler.stochastic else None,
    )


CASES: dict[str, tuple[Family, dict[str, Any]]] = {
    "pixart-dpm": (PIXART_ALPHA, dpm()),
    "pixart-unipc": (PIXART_ALPHA, unipc(solver_order=3)),
    "pixart-euler": (PIXART_ALPHA, euler()),
    "dit-ddpm": (DIT, ddpm()),
    "dit-ddim": (DIT, ddim()),
    "flux": (FLUX, flow(shift=3.0)),
    "z-image": (Z_IMAGE, flow(shift=3.0)),
}


def arrays(made: Made) -> list[np.ndarray]:
    return [made.given(), made.output(), made.latents()]


@pytest.mark.parametrize("case", CASES)
def test_latents_on_a_device_take_the_same_way(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, config = CASES[case]
    one = denoising(tmp_path, family, config)
    latents = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)
    here = [(m.timestep, *arrays(m)) for m in one.steps(latents, ON_CPU)]
    monkeypatch.setattr(one.transformer, "run", None)  # which takes and gives numpy
    there = list(one.steps(latents, PRETEND))
    assert [m.index for m in there] == list(range(5))
    for (timestep, *wanted), made in zip(here, there, strict=True):
        assert timestep == made.timestep
        for a, b in zip(wanted, arrays(made), strict=True):
            assert a.shape == b.shape
            assert sqnr_db(a, b) > TURNED_DB


def test_adapters_are_added_on_a_device_too(tmp_path: Path) -> None:
    one = denoising(tmp_path, PIXART_ALPHA, dpm())
    latents = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)
    plain = list(one.steps(latents, ON_CPU))[-1].latents()
    one = replace(one, adapters={"slot": np.full(1, 0.5, np.float32)})
    here, there = (list(one.steps(latents, placed))[-1].latents() for placed in (ON_CPU, PRETEND))
    assert sqnr_db(here, there) > TURNED_DB > sqnr_db(here, plain)


RECORDING = replace(PRETEND, capture={})


def recorder(folder: Path) -> Recorder:
    return Recorder(partial(session, folder / "model.onnx", library=False), RECORDING)


@pytest.mark.parametrize("case", ["pixart-dpm", "dit-ddpm", "flux"])
def test_a_recorded_run_reads_and_writes_the_same_memory(case: str, tmp_path: Path) -> None:
    family, config = CASES[case]
    one = denoising(tmp_path, family, config)
    replayed = replace(one, recorder=recorder(tmp_path))
    places = []
    for seed in range(2):
        latents = np.random.default_rng(seed).standard_normal((2, *SHAPE), np.float32)
        there = [arrays(m) for m in one.steps(latents, PRETEND)]
        again = [arrays(m) for m in replayed.steps(latents, RECORDING)]
        for a, b in zip(there, again, strict=True):
            assert all(map(np.array_equal, a, b))
        last = replayed.recorder and replayed.recorder.last
        places.append({name: v.data_ptr() for name, v in last.inputs.items()} if last else {})
    assert places[0] == places[1] != {}


def test_inputs_of_one_kind_are_recorded_once(tmp_path: Path) -> None:
    model = transformer(tmp_path, PIXART_ALPHA)
    recorded = recorder(tmp_path)
    feed = {
        "hidden_states": np.zeros((2, *SHAPE), np.float32),
        "timestep": np.zeros(2, PIXART_ALPHA.timestep.dtype),
        "text": np.zeros(2, np.float32),
        "slot": np.zeros(1, np.float32),
    }
    first = recorded(model, feed)
    assert recorded(model, feed) is first
    assert recorded(model, {name: x for name, x in feed.items() if name != "slot"}) is not first
    feed["hidden_states"] = np.zeros((2, 4, 6, 10), np.float32)
    other = recorded(model, feed)
    other.write(feed)
    assert other is not first
    assert other.run()[0].shape() == [2, 8, 6, 10]


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    one = denoising(tmp_path, PIXART_ALPHA, {**ddim(), "clip_sample": True})
    one = replace(one, recorder=recorder(tmp_path))
    with pytest.raises(UsageError, match="--cuda-graph takes latents that stay on the device"):
        list(one.steps(np.zeros((2, *SHAPE), np.float32), RECORDING))
    with pytest.raises(
        UsageError, match="device cpu records no CUDA graphs: expected --device cu"
    ):
        Recorder(session, ON_CPU)
    placed = Placement("cuda:0", (("CUDA", {"a": "1"}), ("CPU", {})), capture={"b": "2"})
    assert placed.capturing().providers == (("CUDA", {"a": "1", "b": "2"}), ("CPU", {}))


def test_steps_that_are_not_linear_run_in_the_machines_memory(tmp_path: Path) -> None:
    one = denoising(tmp_path, PIXART_ALPHA, {**ddim(), "clip_sample": True})
    latents = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)
    here, there = (list(one.steps(latents, placed)) for placed in (ON_CPU, PRETEND))
    assert np.array_equal(here[-1].latents(), there[-1].latents())


def test_a_device_without_bound_memory_is_given_numpy(tmp_path: Path) -> None:
    one = denoising(tmp_path, PIXART_ALPHA, dpm())
    latents = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)
    plain = Placement("pretend", ((CPU_PROVIDER, {}),))
    here, there = (list(one.steps(latents, placed)) for placed in (ON_CPU, plain))
    assert np.array_equal(here[-1].latents(), there[-1].latents())
