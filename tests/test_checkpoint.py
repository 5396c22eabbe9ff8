"""Reading diffusers folders: what is found, and one clear line for each way to be wrong."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.checkpoint.tensor_files import read_header
from fp4dit_onnx.errors import CheckpointError

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"


def split_into_shards(folder: Path) -> Path:
    """Replace the transformer's weight file by two shards and their index."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    (folder / WEIGHTS).unlink()
    weight_map = {}
    for number, part in enumerate((names[:50], names[50:]), start=1):
        shard = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / "transformer" / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_embedded_pipeline_is_read_without_weights() -> None:
    checkpoint = open_checkpoint()
    assert checkpoint.pipeline_class == "PixArtAlphaPipeline"
    assert checkpoint.transformer_class == "PixArtTransformer2DModel"
    assert checkpoint.transformer_config["num_layers"] == 8
    assert checkpoint.variant is None
    assert {"transformer", "text_encoder", "vae", "tokenizer", "scheduler"} <= set(
        checkpoint.components
    )


def test_tensor_places_agree_with_the_safetensors_library(demo_folder: Path) -> None:
    tensors = open_checkpoint(demo_folder).tensors
    with safe_open(demo_folder / WEIGHTS, framework="np") as file:
        assert set(tensors) == set(file.keys())
        for name, info in tensors.items():
            expected = file.get_tensor(name)
            assert info.shape == expected.shape
            with info.file.open("rb") as stream:
                stream.seek(info.offset)
                data = np.frombuffer(stream.read(info.nbytes), expected.dtype)
            np.testing.assert_array_equal(data.reshape(info.shape), expected)


def test_shards_hold_the_same_tensors(demo_copy: Path, demo_folder: Path) -> None:
    sharded = open_checkpoint(split_into_shards(demo_copy)).tensors
    whole = open_checkpoint(demo_folder).tensors
    assert {n: (t.shape, t.dtype) for n, t in sharded.items()} == {
        n: (t.shape, t.dtype) for n, t in whole.items()
    }
    assert len({t.file for t in sharded.values()}) == 2


def test_variant_is_found_and_named(demo_copy: Path) -> None:
    plain = demo_copy / WEIGHTS
    plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert open_checkpoint(demo_copy).variant == "fp16"


def test_plain_weights_are_preferred_to_a_variant(demo_copy: Path) -> None:
    plain = demo_copy / WEIGHTS
    shutil.copy(plain, plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert open_checkpoint(demo_copy).variant is None


def edit_json(path: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1000])


def replace_header(folder: Path, header: bytes, length: int | None = None) -> None:
    size = len(header) if length is None else length
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", size) + header + bytes(64))


def lose_shard(folder: Path) -> None:
    split_into_shards(folder)
    (folder / "transformer/diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def lose_tensor(folder: Path) -> None:
    split_into_shards(folder)
    edit_json(
        folder / INDEX,
        lambda index: index["weight_map"].update(
            lost="diffusion_pytorch_model-00001-of-00002.safetensors"
        ),
    )


def escape_folder(folder: Path) -> None:
    split_into_shards(folder)
    edit_json(
        folder / INDEX,
        lambda index: index["weight_map"].update(x="../vae/diffusion_pytorch_model.safetensors"),
    )


def keep_pickles(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "transformer/diffusion_pytorch_model.bin")


def header_of(entry: object) -> bytes:
    return json.dumps({"w": entry}).encode()


DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no index": (
        lambda f: (f / "model_index.json").unlink(),
        ("model_index.json", "expected a diffusers pipeline folder"),
    ),
    "index no JSON": (
        lambda f: (f / "model_index.json").write_text("{"),
        ("model_index.json is not JSON", "download"),
    ),
    "index no object": (
        lambda f: (f / "model_index.json").write_text("[]"),
        ("holds a JSON list", "expected an object"),
    ),
    "index no class": (
        lambda f: edit_json(f / "model_index.json", lambda c: c.pop("_class_name")),
        ("names no pipeline class", "expected"),
    ),
    "no transformer listed": (
        lambda f: edit_json(f / "model_index.json", lambda c: c.pop("transformer")),
        ("PixArtAlphaPipeline) has no transformer", "expected a diffusion transformer"),
    ),
    "component folder": (
        lambda f: shutil.rmtree(f / "text_encoder"),
        ("has no folder 'text_encoder'", "T5EncoderModel", "download"),
    ),
    "config missing": (
        lambda f: (f / "transformer/config.json").unlink(),
        ("transformer/config.json not found", "the transformer's settings"),
    ),
    "config of another class": (
        lambda f: edit_json(
            f / "transformer/config.json", lambda c: c.update(_class_name="DiTTransformer2DModel")
        ),
        ("is of class DiTTransformer2DModel", "expected PixArtTransformer2DModel"),
    ),
    "scheduler config": (
        lambda f: (f / "scheduler/scheduler_config.json").unlink(),
        ("scheduler_config.json not found", "download"),
    ),
    "tokenizer.json": (
        lambda f: (f / "tokenizer/tokenizer.json").unlink(),
        ("has no tokenizer.json", "tokenizer_config.json", "download the folder again"),
    ),
    "truncated": (truncate, ("is truncated", "download it again")),
    "shorter than a prefix": (
        lambda f: (f / WEIGHTS).write_bytes(b"\x01"),
        ("1 bytes, too short for a header", "download"),
    ),
    "a pointer": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
        ("is a pointer of Git LFS", "git lfs pull", "download"),
    ),
    "header longer than the file": (
        lambda f: replace_header(f, b"{}", 5000),
        ("header of 5000 bytes in a file of 74", "download"),
    ),
    "header absurdly long": (
        lambda f: replace_header(f, b"{}", 2**62),
        ("announce a header of", "download"),
    ),
    "header garbage": (
        lambda f: replace_header(f, b"\xfd\xfc garbage\x00"),
        ("its header is not a text: byte 10 is NUL", "download"),
    ),
    "header no object": (
        lambda f: replace_header(f, b"[1]"),
        ("its header holds a JSON list", "download"),
    ),
    "entry no object": (lambda f: replace_header(f, header_of(3)), ("entry 'w'", "download")),
    "entry of unknown type": (
        lambda f: replace_header(
            f, header_of({"dtype": "F3", "shape": [8], "data_offsets": [0, 64]})
        ),
        ("entry 'w'", "download"),
    ),
    "entry contradicts itself": (
        lambda f: replace_header(
            f, header_of({"dtype": "F32", "shape": [8], "data_offsets": [0, 64]})
        ),
        ("entry 'w'", "download"),
    ),
    "bytes of no tensor": (
        lambda f: replace_header(
            f, header_of({"dtype": "F32", "shape": [8], "data_offsets": [0, 32]})
        ),
        ("bytes that no tensor owns", "download"),
    ),
    "shard missing": (lose_shard, ("-00002-of-00002.safetensors' not found", "download")),
    "tensor not in its shard": (lose_tensor, ("lacks tensor 'lost'", "download")),
    "shard outside": (escape_folder, ("shard '../vae", "not found")),
    "index without a map": (
        lambda f: (split_into_shards(f) / INDEX).write_text('{"weight_map": 3}'),
        ("has no table 'weight_map'", "download"),
    ),
    "pickles only": (keep_pickles, ("PyTorch weights only", "safe_serialization=True")),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), ("holds no weights", "download")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_gives_one_clear_line(demo_copy: Path, name: str) -> None:
    damage, expected = DAMAGES[name]
    damage(demo_copy)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(demo_copy)
    message = str(caught.value)
    assert "\n" not in message
    for words in expected:
        assert words in message
    assert caught.value.exit_code == 2


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not found: expected a diffusers pipeline folder"):
        open_checkpoint(tmp_path / "absent")


def test_name_of_a_model_is_not_downloaded() -> None:
    with pytest.raises(CheckpointError, match="download it first"):
        open_checkpoint("someone/some-model")


def test_file_is_no_pipeline(demo_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file"):
        open_checkpoint(demo_folder / "model_index.json")


def test_component_names_its_pipeline(demo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"one component of a pipeline.*{demo_folder.name}"):
        open_checkpoint(demo_folder / "transformer")
    lone = shutil.copytree(demo_folder / "transformer", tmp_path / "transformer")
    with pytest.raises(CheckpointError, match="give its parent folder"):
        open_checkpoint(lone)


def test_bundle_is_no_checkpoint(demo_copy: Path) -> None:
    (demo_copy / "quantization.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a quantized bundle"):
        open_checkpoint(demo_copy)


def test_header_of_a_file_without_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    assert read_header(tmp_path / "empty.safetensors") == {}
