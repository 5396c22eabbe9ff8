"""Networks and stored tensors brought together: names, classes, what is left over; as in diffusers."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")

import diffusers
import torch
import transformers
from random_pipeline import make
from safetensors.torch import load_file, save_file

from fp4dit_onnx.calibration.sampling import load_pipeline
from fp4dit_onnx.checkpoint.checkpoint import Component, open_checkpoint
from fp4dit_onnx.checkpoint.tensor_files import read_header
from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.exporting.components import copy_settings
from fp4dit_onnx.exporting.export import ExportRequest, plan
from fp4dit_onnx.network.stored import fitted, loaded
from fp4dit_onnx.system.silence import quiet

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
OLDER = "Transformer2DModel"
CLASSES = {"pixart-alpha-512": "PixArtTransformer2DModel", "dit-xl-2-256": "DiTTransformer2DModel"}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Transformers of small pipelines; not to be changed."""
    root = tmp_path_factory.mktemp("twins")
    for name in CLASSES:
        make(name, root / name, twin=True, components=("transformer",))
    return {name: root / name for name in CLASSES}


@pytest.fixture
def twin(twins: Mapping[str, Path], tmp_path: Path) -> Path:
    """A PixArt's transformer, to be changed."""
    return shutil.copytree(twins["pixart-alpha-512"], tmp_path / "twin")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    assert type(ours) is type(theirs)
    first, second = ours.state_dict(), theirs.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("index_older", [False, True])
@pytest.mark.parametrize("config_older", [False, True])
def test_either_name_of_a_class(
    twins: Mapping[str, Path], tmp_path: Path, name: str, index_older: bool, config_older: bool
) -> None:
    folder = shutil.copytree(twins[name], tmp_path / "twin")
    listed = OLDER if index_older else CLASSES[name]
    edit(folder / "model_index.json", lambda c: c.update(transformer=["diffusers", listed]))
    own = OLDER if config_older else CLASSES[name]
    edit(folder / "transformer/config.json", lambda c: c.update(_class_name=own))
    checkpoint = open_checkpoint(folder, only=("transformer",))
    assert checkpoint.transformer_class == CLASSES[name]
    with quiet():
        theirs = getattr(diffusers, listed).from_pretrained(folder / "transformer")
    same(loaded(checkpoint.components["transformer"]), theirs)
    assert plan(asked(folder)).layers


@pytest.mark.parametrize("index_older", [False, True])
def test_a_name_without_norm_type(twin: Path, index_older: bool) -> None:
    """The file that says the newer name tells what the older one means."""
    names = (OLDER, CLASSES["pixart-alpha-512"])
    listed, own = names if index_older else names[::-1]
    edit(twin / "model_index.json", lambda c: c.update(transformer=["diffusers", listed]))
    edit(
        twin / "transformer/config.json", lambda c: (c.pop("norm_type"), c.update(_class_name=own))
    )
    checkpoint = open_checkpoint(twin, only=("transformer",))
    assert checkpoint.transformer_class == CLASSES["pixart-alpha-512"]


def test_an_older_name_of_another_class(twin: Path) -> None:
    changes = {"_class_name": OLDER, "norm_type": "ada_norm_zero"}
    edit(twin / "transformer/config.json", lambda c: c.update(changes))
    with pytest.raises(
        CheckpointError, match="is of class DiTTransformer2DModel: expected PixArt"
    ):
        open_checkpoint(twin)


def asked(folder: Path) -> ExportRequest:
    return ExportRequest(
        output=folder / "out", model=folder, method="fp-rtn", components="transformer"
    )


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda n: f"_orig_mod.{n}", "'_orig_mod.' of torch.compile is removed from the names of"),
        (
            lambda n: n.replace("blocks.0.", "blocks.0._orig_mod."),
            "'_orig_mod.' of torch.compile is removed from the names of",
        ),
        (lambda n: f"module.{n}", "'module.' of DataParallel is removed from the names of all"),
        (lambda n: f"module._orig_mod.{n}", "'module.' of DataParallel"),
    ],
)
def test_names_of_torchs_wrappers(twin: Path, wrap: Callable[[str], str], note: str) -> None:
    plain = loaded(open_checkpoint(twin, only=("transformer",)).components["transformer"])
    edit_tensors(twin, lambda tensors: {wrap(name): t for name, t in tensors.items()})
    checkpoint = open_checkpoint(twin, only=("transformer",))
    assert any(note in line for line in checkpoint.notes)
    same(loaded(checkpoint.components["transformer"]), plain)
    assert plan(asked(twin)).to_json()["notes"] == list(checkpoint.notes)


def test_a_name_with_and_without_a_wrapper(twin: Path) -> None:
    edit_tensors(twin, lambda t: t | {"_orig_mod.proj_out.bias": t["proj_out.bias"] + 1})
    with pytest.raises(CheckpointError, match=r"proj_out\.bias' are two values of"):
        open_checkpoint(twin)


def test_an_unknown_beginning_of_names(twin: Path) -> None:
    edit_tensors(twin, lambda tensors: {f"model.{name}": t for name, t in tensors.items()})
    with pytest.raises(CheckpointError, match=r"has 'model\..*' in place of '.*save the network"):
        plan(asked(twin))


@pytest.mark.parametrize(
    "name",
    [
        "transformer_blocks.0.attn1.to_q.lora_A.default.weight",
        "transformer_blocks.0.attn1.to_q_lora.down.weight",
        "transformer_blocks.0.attn1.processor.to_v_lora.up.weight",
        "transformer_blocks.0.attn1.to_q.lora_magnitude_vector.weight",
        "transformer_blocks.0.attn1.to_q.base_layer.weight",
        "transformer_blocks.0.attn1.to_q.hada_w1_a",
        "transformer_blocks.0.attn1.to_q.lokr_w2",
        "transformer_blocks.0.attn1.to_q.oft_r.default",
        "lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight",
    ],
)
def test_adapters_are_refused(twin: Path, name: str) -> None:
    edit_tensors(twin, lambda tensors: tensors | {name: torch.ones(4, 96)})
    with pytest.raises(CheckpointError, match="belongs to a LoRA or a like adapter") as caught:
        open_checkpoint(twin, only=("transformer",))
    assert name in str(caught.value)


def test_an_encoders_adapter_is_refused(demo_copy: Path) -> None:
    path = demo_copy / "text_encoder" / "adapter_config.json"
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="makes an adapter"):
        open_checkpoint(demo_copy)
    path.unlink()
    path = demo_copy / "text_encoder" / "model.safetensors"
    name = "encoder.block.0.layer.0.SelfAttention.q.lora_B.weight"
    save_file(load_file(path) | {name: torch.ones(2, 2)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="belongs to a LoRA"):
        open_checkpoint(demo_copy)


def test_tensors_that_a_network_does_not_have(twin: Path) -> None:
    before = plan(asked(twin))
    foreign = {f"ip_adapter.{i}.to_k_ip.weight": torch.ones(4, 8) for i in range(5)}
    foreign["pos_embed.pos_embed"] = torch.ones(1, 4)  # computed by the class
    edit_tensors(twin, lambda tensors: tensors | foreign)
    planned = plan(asked(twin))
    assert (planned.layers, planned.totals) == (before.layers, before.totals)
    (note,) = planned.checkpoint.notes
    assert note.startswith("transformer: tensors that PixArtTransformer2DModel does not have")
    assert "(5): ip_adapter.0.to_k_ip.weight" in note
    assert "pos_embed" not in note


def test_a_setting_that_the_file_leaves_to_the_class(twin: Path) -> None:
    """The bundle's own config.json says it: without diffusers nobody knows the default."""
    edit(twin / "transformer/config.json", lambda c: c.pop("sample_size"))
    planned = plan(asked(twin))
    default = (
        inspect.signature(diffusers.PixArtTransformer2DModel).parameters["sample_size"].default
    )
    assert planned.checkpoint.transformer_config["sample_size"] == default
    assert planned.sampling.height == 8 * default
    twin.with_name("bundle").mkdir()
    copy_settings(planned.checkpoint, twin.with_name("bundle"))
    written = json.loads((twin.with_name("bundle") / "transformer/config.json").read_text())
    assert written["sample_size"] == default
    assert written["_class_name"] == "PixArtTransformer2DModel"


CLIP = transformers.CLIPTextConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    max_position_embeddings=4,
)
T5 = transformers.T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_heads=2, num_layers=1)


def encoder(folder: Path, network: Any, extra: Mapping[str, Any], prefix: str = "") -> Component:
    """A text encoder as a component, with tensors beside its own."""
    network.config.save_pretrained(folder)
    tensors = {prefix + n: t.clone() for n, t in network.state_dict().items()}
    tensors.pop("encoder.embed_tokens.weight", None)  # tied
    save_file(tensors | extra, folder / "model.safetensors", {"format": "pt"})
    header = read_header(folder / "model.safetensors")
    return Component("text_encoder", folder, type(network).__name__, header)


@pytest.mark.parametrize(
    ("network", "prefix", "extra", "noted"),
    [
        (transformers.CLIPTextModel(CLIP), "text_model.", "text_model.embeddings.position_ids", 0),
        (transformers.CLIPTextModel(CLIP), "", "vision_model.pre_layrnorm.weight", 1),
        (transformers.T5EncoderModel(T5), "", "decoder.block.0.layer.0.layer_norm.weight", 0),
        (transformers.T5EncoderModel(T5), "", "lm_head.weight", 1),
    ],
)
def test_what_an_encoders_class_ignores(
    tmp_path: Path, network: Any, prefix: str, extra: str, noted: int
) -> None:
    part = encoder(tmp_path, network, {extra: torch.zeros(4)}, prefix)
    checkpoint = open_checkpoint()
    kept = fitted(checkpoint.__class__(**{**vars(checkpoint), "components": {part.name: part}}))
    own = kept.components[part.name]
    assert extra not in own.tensors
    assert len(own.notes) == noted
    assert all(extra in note for note in own.notes)
    with quiet():
        theirs = type(network).from_pretrained(tmp_path, dtype=torch.float32)
    same(loaded(own), theirs)


def test_a_counter_is_no_weight(tmp_path: Path) -> None:
    """FLUX.2's VAE counts batches, in int64."""
    network = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=2,
    )
    network.bn.running_var.fill_(4)
    network.save_pretrained(tmp_path)
    header = read_header(tmp_path / "diffusion_pytorch_model.safetensors")
    part = Component("vae", tmp_path, "AutoencoderKLFlux2", header)
    checkpoint = open_checkpoint()
    kept = fitted(checkpoint.__class__(**{**vars(checkpoint), "components": {"vae": part}}))
    own = kept.components["vae"]
    assert header.keys() - own.tensors.keys() == {"bn.num_batches_tracked"}
    assert own.notes == ()
    same(loaded(own), network)


def test_a_tied_tensor_that_is_stored_twice(tmp_path: Path) -> None:
    network = transformers.T5EncoderModel(T5)
    again = network.shared.weight.detach().clone()
    same(loaded(encoder(tmp_path, network, {"encoder.embed_tokens.weight": again})), network)
    part = encoder(tmp_path, network, {"encoder.embed_tokens.weight": again + 1})
    with pytest.raises(CheckpointError, match="are one tensor of T5EncoderModel and differ"):
        loaded(part)


def test_the_pipeline_is_as_diffusers_loads_it(demo_folder: Path, torch_pipeline: Any) -> None:
    ours = load_pipeline(open_checkpoint(demo_folder))
    for name in ("transformer", "text_encoder", "vae"):
        same(getattr(ours, name), getattr(torch_pipeline, name))
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        first, second = (p.text_encoder(ids)[0] for p in (ours, torch_pipeline))
    assert torch.equal(first, second)
    assert type(ours.scheduler) is type(torch_pipeline.scheduler)
