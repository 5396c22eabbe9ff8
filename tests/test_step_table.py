"""The step table against the schedulers that it is read off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scheduler_configs import Config, ddim, ddpm, dpm, unipc

from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.components import copy_settings
from fp4dit_onnx.runtime.schedulers import FlowPlan, Run, scheduler_from_config
from fp4dit_onnx.runtime.step_table import (
    STEP_TABLE,
    StepTable,
    bundle_step_table,
    step_table,
    with_begun,
    write_step_table,
)

FloatArray = npt.NDArray[np.float32]
SHAPE = (1, 4, 8, 8)


def started(config: Config, steps: int) -> Callable[[], Run]:
    """Begins runs of a scheduler."""
    scheduler = scheduler_from_config(config)
    return lambda: scheduler.start(steps, FlowPlan(0, from_one=False))


CONFIGS = {
    "PixArt": dpm(),
    "first order": dpm(solver_order=1),
    "third order": dpm(solver_order=3),
    "third order, heun, karras": dpm(solver_order=3, solver_type="heun", use_karras_sigmas=True),
    "v prediction": dpm(prediction_type="v_prediction", final_sigmas_type="sigma_min"),
    "data prediction": dpm(prediction_type="sample", timestep_spacing="trailing"),
    "DiT": ddim(set_alpha_to_one=True),
    "Hunyuan-DiT": ddpm(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.018,
        prediction_type="v_prediction",
        steps_offset=1,
    ),
    "DDPM": ddpm(variance_type="fixed_large"),
    "SD3": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "flow, fresh noise": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "stochastic_sampling": True,
    },
    "PixArt-LCM": {"_class_name": "LCMScheduler", "beta_schedule": "linear"},
    "UniPC": {"_class_name": "UniPCMultistepScheduler"},
    "UniPC of third order": {"_class_name": "UniPCMultistepScheduler", "solver_order": 3},
    "Euler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
    "Euler ancestral": {"_class_name": "EulerAncestralDiscreteScheduler"},
    "zero SNR": ddim(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    ),
}


def next_sample(
    table: StepTable, i: int, samples: list[FloatArray], outputs: list[FloatArray], z: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """x[i+1] by the table in float64, and the sum of its terms' magnitudes."""
    terms = [table.noise[i] * z.astype(np.float64)]
    terms += [w * x.astype(np.float64) for w, x in zip(table.sample[i], samples, strict=False)]
    terms += [w * o.astype(np.float64) for w, o in zip(table.output[i], outputs, strict=False)]
    return np.sum(terms, axis=0), np.sum(np.abs(terms), axis=0)


def worst_error(table: StepTable, config: Config, steps: int) -> float:
    """The largest |table - scheduler| over a run, each relative to the magnitudes of its terms."""
    run = started(config, steps)()
    assert table.timesteps.tolist() == run.timesteps.tolist()
    random = np.random.default_rng(5)
    draw = [random.standard_normal((steps + 1, *SHAPE)).astype(np.float32) for _ in range(3)]
    worst = 0.0
    samples: list[FloatArray] = []
    outputs: list[FloatArray] = []
    for i in range(steps):
        samples, outputs = [draw[0][i], *samples][:4], [draw[1][i], *outputs][:4]
        expected = run.step(outputs[0], samples[0], draw[2][i])
        found, size = next_sample(table, i, samples, outputs, draw[2][i])
        worst = max(worst, float((np.abs(found - expected) / size).max()))
    return worst


# A step runs about ten float32 operations, which round to 2^-24 relative each. The table's sums
# are of the same terms gathered by sample and output, so a term may be smaller than what it is
# the difference of: data from noise, (x - sigma o) / alpha, and slopes, (d0 - d1) / r0, of data
# and noise in like amounts. Gathering loses one factor of cancellation, below 8 in these
# schedules: 10 * 8 * 2^-24 = 4.8e-6.
TOLERANCE = 4.8e-6


@pytest.mark.parametrize("steps", [1, 2, 4, 20, 50])
@pytest.mark.parametrize("name", CONFIGS)
def test_table_steps_as_the_scheduler(name: str, steps: int) -> None:
    config = CONFIGS[name]
    table = step_table(started(config, steps))
    taps = 4 if name == "UniPC of third order" and steps > 4 else 3
    assert table.sample.shape == table.output.shape == (steps, taps)
    assert worst_error(table, config, steps) <= TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_that_begins_later(name: str) -> None:
    """Its first steps look back to none before it, and its samples are of data and noise."""
    start = started(CONFIGS[name], 20)
    table = with_begun(step_table(start), start)
    assert bool(table.begun) == (table.sample[:, 1:].any() or table.output[:, 1:].any())
    for first in (0, 1, 11, 18, 19):
        rest = step_table(lambda first=first: start().since(first))  # type: ignore[misc]
        weights = [*table.begun, *[(table.sample, table.output)] * 20]
        for step in range(20 - first):
            for whole, part in zip(weights[step], (rest.sample, rest.output), strict=True):
                row = part[step]
                assert whole[first + step, : row.size].tolist() == row.tolist()
        assert table.levels[first:].tolist() == rest.levels.tolist()
    sample = start().noised(np.ones(1, np.float32), np.full(1, 7, np.float32), 11)
    assert sample.tolist() == [table.levels[11] @ np.array([1, 7], np.float32)]


def test_comparison_finds_a_wrong_table() -> None:
    config = CONFIGS["PixArt"]
    other = step_table(started(dpm(solver_type="heun"), 20))
    assert worst_error(other, config, 20) > 100 * TOLERANCE


def test_only_stochastic_schedulers_take_noise() -> None:
    noise = {n: step_table(started(c, 20)).noise for n, c in CONFIGS.items()}
    taking = {name for name, weights in noise.items() if weights.any()}
    assert taking == {"DDPM", "Hunyuan-DiT", "flow, fresh noise", "PixArt-LCM", "Euler ancestral"}
    assert max(noise[name][-1] for name in taking) <= 1e-10  # the least variance of DDPM


def test_only_euler_scales_what_the_model_is_given() -> None:
    for name, config in CONFIGS.items():
        table = step_table(started(config, 20))
        if name.startswith("Euler"):
            assert table.initial > 90
            assert (np.diff(table.input) > 0).all()  # towards 1, as the noise falls
            assert table.input[0] * table.initial == pytest.approx(1, abs=1e-4)
        else:
            assert table.initial == 1
            assert (table.input == 1).all()


def test_a_step_never_looks_further_back_than_the_run() -> None:
    table = step_table(started(CONFIGS["third order"], 20))
    assert not table.sample[0, 1:].any()
    assert not table.sample[1, 2:].any()
    assert table.sample[2, 2] != 0


def test_steps_that_clip_have_no_table() -> None:
    with pytest.raises(UsageError, match=r"not linear.*clip_sample"):
        step_table(started(ddim(clip_sample=True), 20))


def test_steps_out_of_range() -> None:
    with pytest.raises(UsageError, match="steps = 0"):
        step_table(started(dpm(), 0))


@pytest.fixture
def settings(demo_folder: Path, tmp_path: Path) -> Path:
    """What copy_settings writes of the demo pipeline, its table included."""
    copy_settings(open_checkpoint(demo_folder), tmp_path, 20)
    return tmp_path


def test_bundles_hold_the_table(settings: Path) -> None:
    text = (settings / STEP_TABLE).read_text()
    stored = json.loads(text)
    table = bundle_step_table(settings, 20)
    assert stored == table.to_json()
    assert stored["steps"] == 20
    assert {len(stored[key]) for key in ("timesteps", "sample", "output", "noise")} == {20}
    for key in ("sample", "output"):  # float32 values, which JSON keeps
        assert np.array_equal(np.array(stored[key], np.float32), getattr(table, key))
    assert write_step_table(settings, 20)
    assert (settings / STEP_TABLE).read_text() == text


def test_no_table_where_steps_depend_on_the_size(settings: Path) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    (settings / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    (settings / STEP_TABLE).unlink()
    with pytest.raises(UsageError, match="use_dynamic_shifting"):
        bundle_step_table(settings, 20)
    assert not write_step_table(settings, 20)
    assert not (settings / STEP_TABLE).exists()


def test_flux_begins_at_one(settings: Path) -> None:
    (settings / "scheduler" / "scheduler_config.json").write_text(json.dumps(CONFIGS["SD3"]))
    index = settings / "model_index.json"
    ours = bundle_step_table(settings, 4).timesteps
    index.write_text(index.read_text().replace("PixArtAlphaPipeline", "FluxPipeline"))
    assert bundle_step_table(settings, 4).timesteps[-1] != ours[-1]


def test_transformer_alone_has_no_table(demo_folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(demo_folder, tmp_path / "pipeline")
    shutil.rmtree(source / "scheduler")
    folder = tmp_path / "bundle"
    folder.mkdir()
    copy_settings(open_checkpoint(source, only=("transformer",)), folder, 20)
    assert not (folder / STEP_TABLE).exists()


def test_steps_that_a_solver_cannot_tell_apart() -> None:
    """In one line, where numpy would say that a matrix is singular."""
    with pytest.raises(UsageError, match="same signal to noise in float32: expected fewer steps"):
        step_table(started(unipc(), 1000))
