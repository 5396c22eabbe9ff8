"""Pipelines as users of diffusers call them, copy them and send them to other processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fp4dit_onnx
from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime import Pipeline

pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Pipeline:
    """Its transformer is a formula."""
    return Pipeline.from_pretrained(bundle, library=False, threads=1)


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"num_inference_steps": 3, "guidance_scale": 2.0}, {"steps": 3, "guidance": 2.0}),
        ({"generator": torch.Generator().manual_seed(7), "steps": 2}, {"seeds": 7, "steps": 2}),
        ({"generator": 7, "num_images_per_prompt": 2}, {"seeds": 7, "count": 2}),
        (
            {"generator": np.random.default_rng(1)},
            {"seeds": int(np.random.default_rng(1).integers(2**63))},
        ),
        ({}, {}),
    ],
)
def test_arguments_of_diffusers(
    pipeline: Pipeline, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    common = {"steps": 2} if "num_inference_steps" not in theirs else {}
    output = pipeline("red apple", negative_prompt="blue", **{**common, **theirs})
    expected = pipeline.generate(["red apple"], negative_prompt="blue", **{**common, **ours})
    assert pixels(output.images) == pixels(expected)
    assert output[0] is output.images


def test_a_generator_for_each_prompt(pipeline: Pipeline) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    found = pipeline(["a", "b"], generator=generators, num_inference_steps=2).images
    assert pixels(found) == pixels(pipeline.generate(["a", "b"], seeds=[1, 2], steps=2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_inference_steps": 3, "steps": 3}, "steps and its name in diffusers"),
        ({"generator": "7"}, "generator is of type str"),
        ({"num_inference_steps": 0}, "steps = 0"),
    ],
)
def test_what_a_call_refuses(pipeline: Pipeline, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pipeline("a", **options)


def test_copies(pipeline: Pipeline, bundle: Path, tmp_path: Path) -> None:
    other = Pipeline.from_pipe(pipeline)
    assert other.transformer is pipeline.transformer
    other.scheduler = None
    assert pipeline.scheduler is not None
    with pytest.raises(UsageError, match="quantize makes a bundle"):
        Pipeline.from_pipe(object())  # type: ignore[arg-type]
    pipeline.save_pretrained(tmp_path / "copy")
    assert Bundle.open(tmp_path / "copy").manifest == Bundle.open(bundle).manifest
    with pytest.raises(UsageError, match="is not empty"):
        pipeline.save_pretrained(tmp_path / "copy")


def test_pickled_pipelines_are_opened_again(pipeline: Pipeline) -> None:
    again = pickle.loads(pickle.dumps(pipeline))
    options = {"seeds": 3, "steps": 2}
    assert pixels(again.generate(["a"], **options)) == pixels(pipeline.generate(["a"], **options))
    again.scheduler = None
    with pytest.raises(UsageError, match="scheduler was replaced"):
        pickle.dumps(again)


def _generate(pipeline: Pipeline, queue: Any) -> None:
    try:
        pipeline.generate(["a"], steps=1)
    except UsageError as error:
        queue.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_pipeline_says_why(pipeline: Pipeline) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_generate, args=(pipeline, queue))
    child.start()
    assert "do not survive a fork" in queue.get(timeout=60)
    child.join()


def test_a_pipeline_in_memory_is_exported_as_its_folder(
    torch_pipeline: Any,
    demo_folder: Path,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What `export` is given has the pipeline's own values; it is gone afterwards."""
    given: list[Path] = []

    def exported(model: Path, output: Path, **options: Any) -> str:
        given.append(model)
        mine, own = (open_checkpoint(folder).components for folder in (model, demo_folder))
        assert mine.keys() == own.keys()
        for name in ("transformer", "vae", "text_encoder"):
            found, expected = (_values(parts[name].folder) for parts in (mine, own))
            assert found.keys() == expected.keys()
            assert all((found[key] == value).all() for key, value in expected.items())
        return f"{output} {options}"

    monkeypatch.setattr("fp4dit_onnx.exporting.in_memory.export", exported)
    made: Any = fp4dit_onnx.quantize(torch_pipeline, "out", bits="w4a8")
    assert made == "out {'bits': 'w4a8'}"
    assert not given[0].exists()
    with pytest.raises(UsageError, match="expected a pipeline of diffusers"):
        fp4dit_onnx.quantize(demo_folder, tmp_path / "no")
    pipe = copy.copy(torch_pipeline)
    pipe.transformer = fp4dit_onnx.load_transformer(bundle, library=False)
    with pytest.raises(UsageError, match="transformer has no weights"):
        fp4dit_onnx.quantize(pipe, tmp_path / "no")


def _values(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
