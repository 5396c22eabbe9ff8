"""Exports that cannot be: one clear line, nothing half-written, the source as it was."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")

import diffusers
from random_pipeline import make
from safetensors.numpy import load_file, save_file

from fp4dit_onnx.bundle.model_file import ModelFile
from fp4dit_onnx.errors import CheckpointError, MissingExtraError, UsageError
from fp4dit_onnx.exporting.calibrating import digest_of_texts
from fp4dit_onnx.exporting.components import copy_settings
from fp4dit_onnx.exporting.export import ExportRequest, export, plan
from fp4dit_onnx.families import table
from fp4dit_onnx.families.auraflow import AURAFLOW
from fp4dit_onnx.report.inspection import inspect_pipeline
from fp4dit_onnx.runtime.schedulers import scheduler_from_config

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def request(output: Path, model: Path | None = None, **changes: Any) -> ExportRequest:
    """A transformer alone, rounded to nearest from its files."""
    settings = {"method": "fp-rtn", "components": "transformer", "measure": False, **changes}
    return ExportRequest(output=output, model=model, **settings)


def digest(folder: Path) -> dict[str, str]:
    """Every file of a folder and what it holds."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / TRANSFORMER
    tensors = dict(load_file(path))
    change(tensors)
    save_file(tensors, path)


def quantized_before(tensors: dict[str, Any]) -> None:
    tensors["proj_out.weight"] = tensors["proj_out.weight"].astype("int8")


def transposed(tensors: dict[str, Any]) -> None:
    name = "adaln_single.linear.weight"
    tensors[name] = tensors[name].T.copy()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: edit_tensors(folder, lambda t: t.pop("proj_out.bias")),
            r"has no tensor 'proj_out.bias': PixArtTransformer2DModel of this config.json needs it",
        ),
        (
            lambda folder: edit_tensors(folder, transposed),
            r"tensor 'adaln_single.linear.weight' has shape \[192, 1152\], .* needs \[1152, 192\]",
        ),
        (
            lambda folder: edit_tensors(folder, quantized_before),
            r"tensor 'proj_out.weight' is of type I8, expected F32, F16 or BF16",
        ),
        (
            lambda folder: edit_config(folder, num_layers=9),
            r"has no tensor 'transformer_blocks.8",
        ),
        (
            lambda folder: edit_config(folder, num_attention_heads="many"),
            r"config.json: num_attention_heads is 'many', expected ",
        ),
        (
            lambda folder: edit_config(folder, _class_name="FluxTransformer2DModel"),
            r"config.json is of class FluxTransformer2DModel: expected PixArtTransformer2DModel",
        ),
    ],
)
def test_a_checkpoint_that_contradicts_itself(
    demo_copy: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(demo_copy)
    before = digest(demo_copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        export(request(tmp_path / "out" / "bundle", demo_copy))
    assert "\n" not in str(caught.value)
    assert digest(demo_copy) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("null", [None, [None, None]])
@pytest.mark.parametrize("name", ["text_encoder", "tokenizer", "scheduler", "vae"])
def test_what_pictures_need_and_is_null(
    demo_copy: Path, tmp_path: Path, name: str, null: object
) -> None:
    path = demo_copy / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: null}))
    shutil.rmtree(demo_copy / name)
    assert inspect_pipeline(demo_copy)["absent"] == [name]
    with pytest.raises(UsageError, match=f"names no {name}, without which PixArtAlpha"):
        plan(request(tmp_path / "out", demo_copy, components="all"))
    assert plan(request(tmp_path / "out", demo_copy)).layers


@pytest.mark.parametrize("name", ["tokenizer", "scheduler", "vae"])
def test_what_pictures_need_and_is_not_listed(demo_copy: Path, tmp_path: Path, name: str) -> None:
    path = demo_copy / "model_index.json"
    listed = json.loads(path.read_text())
    del listed[name]
    path.write_text(json.dumps(listed))
    with pytest.raises(UsageError, match=f"names no {name}, without which PixArtAlpha"):
        plan(request(tmp_path / "out", demo_copy, components="all"))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    make("pixart-alpha-512", tmp_path / "pipeline", twin=True, shard_bytes=100_000)
    shards = sorted((tmp_path / "pipeline" / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    assert plan(request(tmp_path / "out", tmp_path / "pipeline")).layers
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"shard '{shards[1].name}' not found"):
        export(request(tmp_path / "out", tmp_path / "pipeline"))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an export that nothing disturbs writes: the transformer's files."""
    folder = tmp_path_factory.mktemp("complete") / "bundle"
    export(request(folder))
    return digest(folder / "transformer")


def test_a_disk_that_fills_up_half_way(
    tmp_path: Path, complete: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to do; the same command then goes on where it stopped."""
    fill, left, done = ModelFile._fill, 60, list[str]()

    def full(self: ModelFile, tensor: Any, *rest: Any) -> None:
        if len(done) == left:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(tensor.name)
        fill(self, tensor, *rest)

    monkeypatch.setattr(ModelFile, "_fill", full)
    with pytest.raises(UsageError, match=r"is full: free some space and repeat the command"):
        export(request(tmp_path / "bundle"))
    assert [p.name for p in tmp_path.iterdir()] == ["bundle.calibration"]
    first, left = done.copy(), 10**6
    export(request(tmp_path / "bundle"))
    large = {name for name in first if done.count(name) == 1}
    assert len(large) > 20  # what was in the data file is not done again; small tensors are
    assert digest(tmp_path / "bundle" / "transformer") == complete
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_disk_too_small_is_told_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 100, 2**20))
    with pytest.raises(UsageError, match=r"has 1.0 MiB free, the output needs"):
        export(request(tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_exceeds_the_memory_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path / "bundle", max_ram=2**26)
    assert plan(asked).layers
    monkeypatch.setattr("fp4dit_onnx.exporting.checks.LAYER_COPIES", 600)
    with pytest.raises(UsageError, match=r"layer .* of shape \[\d+, \d+\] alone takes about 0"):
        plan(asked)


def test_a_source_that_changed_begins_anew(demo_copy: Path, tmp_path: Path) -> None:
    """A work folder of other weights is refused, and used up with --restart."""
    work = tmp_path / "bundle.calibration"
    work.mkdir()
    (work / "calibration.json").write_text(json.dumps({"model": {"other": [1, 2]}}))
    with pytest.raises(UsageError, match="holds another calibration"):
        export(request(tmp_path / "bundle", demo_copy))
    export(request(tmp_path / "bundle", demo_copy, restart=True))
    assert (tmp_path / "bundle").is_dir()


@pytest.mark.parametrize(
    "changed",
    [
        "text_encoder/model.safetensors",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_a_work_folder_belongs_to_its_text_encoders(
    changed: str, demo_copy: Path, tmp_path: Path
) -> None:
    """It keeps what they gave, and would go on with that."""
    planned = plan(request(tmp_path / "bundle", demo_copy, method="fp4dit", components="all"))
    before = digest_of_texts(planned.checkpoint)
    assert digest_of_texts(planned.checkpoint) == before
    file = demo_copy / changed
    file.write_bytes(file.read_bytes() + b" ")
    assert digest_of_texts(planned.checkpoint) != before


def test_methods_that_need_data_are_refused_where_no_pipeline_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("auraflow", tmp_path / "pipeline", twin=True)
    unknown = tuple(replace(spec, source=None) for spec in AURAFLOW.inputs)
    monkeypatch.setattr(table, "FAMILIES", [replace(AURAFLOW, inputs=unknown)])
    for changes in ({"method": "fp4dit"}, {"weight_format": "auto"}, {"measure": True}):
        with pytest.raises(UsageError, match="AuraFlow cannot be calibrated yet"):
            plan(request(tmp_path / "out", tmp_path / "pipeline", **changes))


def test_prompts_of_a_model_of_classes_are_classes(tmp_path: Path) -> None:
    """Told before the model is loaded."""
    make("dit-xl-2-256", tmp_path / "pipeline", twin=True)
    prompts = tmp_path / "prompts.txt"
    asked = request(
        tmp_path / "out", tmp_path / "pipeline", method="fp4dit", components="all", prompts=prompts
    )
    prompts.write_text("7\na red apple\n")
    with pytest.raises(
        UsageError, match="no class 'a red apple': expected a number from 0 to 999"
    ):
        plan(asked)
    prompts.write_text("7\n")
    assert set(plan(asked).prompts) == {"7"}


def list_scheduler(pipeline: Path, class_name: str) -> None:
    """Let model_index.json name another scheduler."""
    path = pipeline / "model_index.json"
    listed = json.loads(path.read_text()) | {"scheduler": ["diffusers", class_name]}
    path.write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "PNDMScheduler"}, "scheduler PNDMScheduler is not supported"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "option thresholding = True"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 10}, "steps = 20: expected"),
        ({"_class_name": "LCMScheduler"}, None),
        ({"_class_name": "UniPCMultistepScheduler"}, None),
    ],
)
def test_schedulers_that_generate_refuses_are_named_before_any_work(
    demo_copy: Path, config: dict[str, Any], words: str | None
) -> None:
    (demo_copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    list_scheduler(demo_copy, config["_class_name"])
    planned = plan(ExportRequest(Path("unused"), demo_copy))
    if words is None:
        assert planned.undrawable == ()
    else:
        (note,) = planned.undrawable
        assert note.startswith("generate will not make images with this bundle: ")
        assert words in note
        assert note in planned.to_json()["notes"]
    alone = plan(
        ExportRequest(Path("unused"), demo_copy, components="transformer", method="fp-rtn")
    )
    assert alone.undrawable == ()


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # torch and numpy in diffusers
def test_the_class_of_a_scheduler_is_that_of_the_index(demo_copy: Path, tmp_path: Path) -> None:
    name = "EulerDiscreteScheduler"
    folder = demo_copy / "scheduler"
    list_scheduler(demo_copy, name)
    stored = json.loads((folder / "scheduler_config.json").read_text())
    assert stored["_class_name"] != name
    stored |= {"timestep_spacing": "trailing", "_use_default_values": ["timestep_spacing"]}
    (folder / "scheduler_config.json").write_text(json.dumps(stored))
    planned = plan(ExportRequest(Path("unused"), demo_copy))
    assert planned.undrawable == ()
    (note,) = planned.notes
    assert note == (
        f"scheduler: model_index.json names {name}, which is used, as diffusers does, and not "
        f"{stored['_class_name']} of scheduler_config.json"
    )
    copy_settings(planned.checkpoint, tmp_path)
    written = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    theirs = diffusers.EulerDiscreteScheduler.from_pretrained(folder)
    theirs.set_timesteps(7)
    np.testing.assert_array_equal(
        scheduler_from_config(written).start(7).timesteps, theirs.timesteps
    )


def test_packages_of_the_report_are_asked_for_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    lacking = lambda name, *rest: None if name == "matplotlib" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", lacking)
    assert plan(request(tmp_path / "b", report=False)).layers
    with pytest.raises(MissingExtraError, match="matplotlib"):
        plan(request(tmp_path / "b"))


@pytest.mark.parametrize("listed", [True, False])
def test_a_method_that_samples_needs_the_whole_pipeline(
    demo_copy: Path, tmp_path: Path, listed: bool
) -> None:
    if listed:
        shutil.rmtree(demo_copy / "text_encoder")
    else:
        index = json.loads((demo_copy / "model_index.json").read_text())
        index["text_encoder"] = [None, None]
        (demo_copy / "model_index.json").write_text(json.dumps(index))
    found = "no folder 'text_encoder'" if listed else "names no text_encoder"
    for method, words in (
        ("tuned", f"{found}.*--method fp-rtn"),
        ("fp-rtn", None),
    ):
        asked = ExportRequest(tmp_path / "b", demo_copy, components="transformer", method=method)
        if words is None:
            assert not plan(asked).trains
        else:
            with pytest.raises(UsageError, match=f"method {method} needs data .*{words}"):
                plan(asked)


def test_a_size_of_calibration_that_the_network_cannot_take(
    demo_copy: Path, tmp_path: Path
) -> None:
    """It is asked of the network's own rules, and images of a bundle keep their size."""
    with pytest.raises(UsageError, match="= 100: expected a positive multiple of 8"):
        plan(request(tmp_path / "out", demo_copy, calibration_size=100))
    planned = plan(request(tmp_path / "out", demo_copy, calibration_size=32))
    assert (planned.recorded.height, planned.recorded.width) == (32, 32)
    assert planned.sampling.height == planned.sampling.width > 32
    asked = request(
        tmp_path / "out", Path(__file__).parent / "pipelines" / "dit", calibration_size=32
    )
    with pytest.raises(UsageError, match="images of 64 pixels alone"):
        plan(asked)


@pytest.mark.parametrize("name", ["bits", "form", "target", "scale"])
def test_nothing_is_not_the_default(tmp_path: Path, name: str) -> None:
    """An empty text, of an unset variable of a shell, is none of the choices."""
    with pytest.raises(UsageError, match="expected"):
        plan(request(tmp_path / "out", **{name: ""}))
