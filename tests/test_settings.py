"""Settings of networks: official ones pass; null, negative, huge and mistyped ones are refused."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.exporting.export import ExportRequest, export
from fp4dit_onnx.families import FAMILIES
from fp4dit_onnx.files import CHECKPOINT
from fp4dit_onnx.files.settings import (
    read_settings,
    sampling_settings,
    transformer_settings,
    vae_settings,
)

pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties' deprecations at import
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    from fp4dit_onnx.network.configs import check_networks, check_settings

from fp4dit_onnx.official import models as official_models

NETWORKS = {
    f"{model}/{name}": part
    for model, pipeline in official_models.MODELS.items()
    for name, part in pipeline.parts.items()
    if name.startswith(("transformer", "text_encoder", "vae"))
}
HUGE = 2**40


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("twin", [False, True])
def test_official_settings_pass(name: str, twin: bool, tmp_path: Path) -> None:
    part = NETWORKS[name]
    config = {**part.config, **(part.twin if twin else {})}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    cls = getattr(sys.modules[part.library], part.class_name)
    classes = getattr(cls, "config_class", None) or cls
    check_settings(path, classes, config, 10_000)
    if "transformer" in name:
        assert transformer_settings(path, CHECKPOINT) == config
        family = next((f for f in FAMILIES if f.transformer == part.class_name), None)
        for spec in () if family is None else family.interface(config).inputs:
            spec.shape(config, dict.fromkeys(("batch", "text", "height", "width", "image"), 2))
    elif "vae" in name and part.class_name == "AutoencoderKL":
        assert vae_settings(path, CHECKPOINT) == config
    else:
        assert read_settings(path, "settings", CHECKPOINT) == config


def changed(source: Path, target: Path, file: str, change: dict[str, Any]) -> Path:
    """A copy of a pipeline with other settings, None for those that are absent."""
    shutil.copytree(source, target)
    content = json.loads((target / file).read_text())
    content |= change
    (target / file).write_text(json.dumps(content))
    return target


@pytest.mark.parametrize(
    ("file", "key", "value", "expected"),
    [
        ("transformer", "caption_channels", None, "is null, expected a whole number from 1"),
        ("transformer", "num_layers", -1, "is -1, expected a whole number from 0"),
        ("transformer", "num_layers", "eight", "is 'eight', expected "),
        ("transformer", "num_layers", HUGE, f"is {HUGE}, expected a whole number from 0"),
        ("transformer", "num_layers", 1000, "is 1000, expected a whole number from 0 to "),
        ("transformer", "num_layers", 2.5, "is 2.5, expected "),
        ("transformer", "num_layers", [8], "is a list, expected "),
        ("transformer", "num_layers", None, "is null, expected a whole number"),
        ("transformer", "sample_size", True, "is true, expected "),
        ("transformer", "patch_size", 0, "is 0, expected a number from 1"),
        ("transformer", "in_channels", {}, "is an object, expected a whole number"),
        ("transformer", "norm_eps", "small", "is 'small', expected a number"),
        ("transformer", "activation_fn", 5, "is 5, expected a text"),
        ("transformer", "attention_bias", "yes", "is 'yes', expected true or false"),
        ("text_encoder", "d_model", None, "is null, expected a whole number"),
        ("text_encoder", "num_layers", -3, "is -3, expected "),
        ("text_encoder", "vocab_size", HUGE, f"is {HUGE}, expected "),
        ("text_encoder", "dropout_rate", [], "is a list, expected "),
        ("vae", "block_out_channels", None, "block_out_channels is not a list of 1 to 16"),
        ("vae", "block_out_channels", [32, "64"], "block_out_channels"),
        ("vae", "scaling_factor", "a lot", "is 'a lot', expected a number"),
        ("vae", "layers_per_block", HUGE, f"is {HUGE}, expected "),
        ("vae", "layers_per_block", 10**6, "is 1000000, expected a whole number from 0 to "),
        ("vae", "up_block_types", [3], "is a list, expected a list, each entry a text"),
    ],
)
def test_settings_that_are_refused(
    demo_folder: Path, tmp_path: Path, file: str, key: str, value: Any, expected: str
) -> None:
    name = f"{file}/config.json"
    model = changed(demo_folder, tmp_path / "model", name, {key: value})
    request = ExportRequest(tmp_path / "out", model=model, method="fp-rtn")
    with pytest.raises(CheckpointError) as caught:
        export(request)
    message = str(caught.value)
    assert name in message.replace("\\", "/") or "config.json of the transformer" in message
    assert key in message
    assert expected in message
    assert "\n" not in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_positions_that_memory_does_not_hold(demo_folder: Path, tmp_path: Path) -> None:
    file = "transformer/config.json"
    model = changed(demo_folder, tmp_path / "model", file, {"sample_size": 2**19})
    with pytest.raises(CheckpointError, match=r"positions of .* take \d+ bytes, and \d+ are free"):
        export(
            ExportRequest(tmp_path / "out", model=model, method="fp-rtn", components="transformer")
        )


def test_the_demo_passes(demo_folder: Path) -> None:
    checkpoint = open_checkpoint(demo_folder)
    family = next(f for f in FAMILIES if checkpoint.pipeline_class in f.pipelines)
    check_networks(checkpoint, family)


def test_a_pipeline_says_how_it_is_sampled(tmp_path: Path) -> None:
    path = tmp_path / "sampling.json"
    path.write_text('{"steps": 12, "guidance": null, "scheduler": "euler"}')
    assert sampling_settings(path, CHECKPOINT) == {"steps": 12}


@pytest.mark.parametrize(
    "content",
    ["[]", '{"steps": 0}', '{"steps": "12"}', '{"guidance": -1}', '{"max_sequence_length": 1e9}'],
)
def test_a_pipeline_that_says_it_wrongly_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sampling.json"
    path.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        sampling_settings(path, CHECKPOINT)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
