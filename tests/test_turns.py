"""Pipelines of which one model at a time is in memory."""

from __future__ import annotations

import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run

from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.runtime import Pipeline, session
from fp4dit_onnx.runtime.providers import CPU_PROVIDER, Placement

pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

PROMPTS = ["giraffe face", "bird wing", "fish"]


def images(pipeline: Pipeline, **given: Any) -> Any:
    """Of two batches."""
    return np.stack(pipeline.generate(PROMPTS, steps=2, seeds=3, batch_size=2, **given))


def test_images_are_the_same_and_one_model_at_a_time_is_open(bundle: Path) -> None:
    opened: list[str] = []
    alive: list[Any] = []

    def watched(path: Path, **named: Any) -> Any:
        assert not any(one() for one in alive), f"{opened[-1]} is open beside {path}"
        assert ("arena" in named) == path.parent.name.startswith("vae")
        made = session(path, **named)
        assert made.get_session_options().enable_cpu_mem_arena == named.get("arena", True)
        alive.append(weakref.ref(made))
        opened.append(path.parent.name)
        return made

    pipeline = Pipeline(bundle, library=False, open_session=watched, low_memory=True)
    assert opened == []
    found = images(pipeline)
    batch = ["text_encoder", "transformer", "vae_decoder"]
    assert opened == ["transformer", *batch, *batch]
    assert np.array_equal(found, images(Pipeline(bundle, library=False)))


def test_it_is_pickled(bundle: Path) -> None:
    pipeline = Pipeline(bundle, library=False, low_memory=True)
    again = pickle.loads(pickle.dumps(pipeline))
    assert type(again.transformer) is type(pipeline.transformer)
    assert np.array_equal(images(again), images(pipeline))


def test_on_a_device_it_is_refused(bundle: Path) -> None:
    placed = Placement("pretend:0", ((CPU_PROVIDER, {}),), ("cpu", 0))
    with pytest.raises(UsageError, match="low memory on pretend:0: expected the device cpu"):
        Pipeline(bundle, device=placed, low_memory=True)


def test_a_model_that_is_missing_is_named_at_its_turn(bundle: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(bundle, library=False, low_memory=True)
    copy = tmp_path / "copy"
    pipeline.save_pretrained(copy)
    (copy / "vae_decoder" / "model.onnx").unlink()
    broken = Pipeline(copy, library=False, low_memory=True)
    with pytest.raises(BundleError, match=r"vae_decoder/model\.onnx does not exist"):
        images(broken)


def test_slots_of_adapters_are_known(drawable: Any) -> None:
    folder = drawable("w8a32", lora_slots=4, lora_layers=("*.attn2.to_q",))

    def slots(**given: Any) -> dict[str, Any]:
        transformer: Any = Pipeline(folder, **given).transformer
        return {one.name: one.shape for one in transformer.get_overridable_initializers()}

    assert slots(low_memory=True) == slots() != {}


def test_the_command(run: Run, bundle: Path, tmp_path: Path) -> None:
    for name, more in (("all", []), ("each", ["--low-memory"])):
        out = tmp_path / f"{name}.png"
        given = ("generate", bundle, "--prompt", "fish", "-o", out, "--no-library")
        code, _, error = run(*given, "--steps", "2", *more)
        assert code == 0, error
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "each.png").read_bytes()
