"""The pipeline that generates images of classes, which prompts name or number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from manifests import EMPTY

from fp4dit_onnx.bundle.bundle import write_manifest
from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.runtime import Pipeline, Sampling

SETTINGS = {
    "model_index.json": {
        "_class_name": "DiTPipeline",
        "id2label": {"0": "tench, Tinca tinca", "207": "golden retriever"},
    },
    "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", "clip_sample": False},
    "transformer/config.json": {"in_channels": 4, "patch_size": 2, "num_embeds_ada_norm": 1000},
    "vae_decoder/config.json": {"block_out_channels": [1, 2, 3, 4], "scaling_factor": 0.5},
}


@dataclass
class FakeSession:
    """Records what it is fed; its output has the number of the row everywhere."""

    inputs: Sequence[str]
    feeds: list[dict[str, npt.NDArray[Any]]] = field(default_factory=list)

    def get_inputs(self) -> list[Any]:
        """Names without shapes."""
        return [SimpleNamespace(name=name, shape=[]) for name in self.inputs]

    def run(
        self, _: Sequence[str] | None, feed: Mapping[str, npt.NDArray[Any]]
    ) -> list[npt.NDArray[Any]]:
        """As many channels as the input has and as many variances; or three times 8 pixels."""
        self.feeds.append(dict(feed))
        rows, _, height, width = feed[self.inputs[0]].shape
        if self.inputs[0] == "latent_sample":
            return [np.zeros((rows, 3, 8 * height, 8 * width), np.float32)]
        numbers = np.arange(rows, dtype=np.float32).reshape(rows, 1, 1, 1)
        return [np.broadcast_to(numbers, (rows, 8, height, width))]


@pytest.fixture
def transformer() -> FakeSession:
    return FakeSession(("hidden_states", "timestep", "class_labels"))


@pytest.fixture
def pipeline(
    transformer: FakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Pipeline:
    for name, content in SETTINGS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    write_manifest(tmp_path, replace(EMPTY, sampling=Sampling(1, 3.0, 32, 32, 0)))
    parts = {"transformer": transformer, "vae_decoder": FakeSession(("latent_sample",))}
    monkeypatch.setattr(
        "fp4dit_onnx.runtime.pipeline.session", lambda path, **_: parts[path.parent.name]
    )
    return Pipeline(tmp_path)


PROMPTS = ["Tinca tinca", " golden retriever ", "tench", "42"]


def test_classes_have_names_and_numbers(pipeline: Pipeline, transformer: FakeSession) -> None:
    assert len(pipeline.generate(PROMPTS)) == 4
    (feed,) = transformer.feeds
    assert feed["class_labels"].tolist() == [0, 207, 0, 42, 1000, 1000, 1000, 1000]
    assert feed["class_labels"].dtype == feed["timestep"].dtype == np.int64
    pipeline.generate(PROMPTS, guidance=1.0)
    assert transformer.feeds[-1]["class_labels"].tolist() == [0, 207, 0, 42]


def test_guidance_is_positive_first_and_drops_the_variance(pipeline: Pipeline) -> None:
    seen: list[Any] = []
    pipeline.sample(["1", "2"], [0, 1], pipeline.settings(), on_step=seen.append)
    # Rows 0 and 1 answered 0 and 1, rows 2 and 3, without a class, 2 and 3: 2 + 3 * (0 - 2).
    assert seen[0].model_output.shape == (2, 4, 4, 4)
    np.testing.assert_array_equal(seen[0].model_output[:, 0, 0, 0], [-4, -3])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompts": ["gold retriever"]}, "no class 'gold retriever'.*'golden retriever'"),
        ({"prompts": [*8 * ["1"], "1000"]}, "no class '1000': expected a number from 0 to 999"),
        ({"prompts": ["-1"]}, "no class '-1'"),
        ({"prompts": [""]}, "no class ''"),
        ({"prompts": ["1"], "negative_prompt": "fog"}, "negative prompt 'fog'"),
        ({"prompts": ["1"], "height": 40}, "height = 40: expected a positive multiple of 16"),
    ],
)
def test_classes_that_cannot_be_drawn(
    pipeline: Pipeline, transformer: FakeSession, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.generate(**request_)
    assert transformer.feeds == []  # all classes are looked up before the first is drawn


def test_classes_without_names(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    with pytest.raises(UsageError, match=r"'tench': expected a number from 0 to 999$"):
        Pipeline(tmp_path).generate(["tench"])


@pytest.mark.parametrize("number", ["1000", "4294967296", "x"])
def test_names_of_classes_that_the_transformer_has_not(
    pipeline: Pipeline, tmp_path: Path, number: str
) -> None:
    index = {"_class_name": "DiTPipeline", "id2label": {number: "goose"}}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BundleError, match=rf"id2label\.{number} is not a number.*0 to 999"):
        Pipeline(tmp_path).generate(["goose"])


def test_a_patch_size_that_is_null_is_the_usual_one(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "transformer" / "config.json").write_text('{"in_channels": 4, "patch_size": null}')
    found = Pipeline(tmp_path)
    found.generate(["1"], height=40)
    with pytest.raises(UsageError, match="height = 44: expected a positive multiple of 8"):
        found.generate(["1"], height=44)
