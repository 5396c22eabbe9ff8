"""The tool that makes pipelines with random weights: official layouts, and small twins that work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import Run

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")  # transformers reads T5's tokenizer with it

import random_pipeline as tool
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from twin_inputs import inputs, normal

from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.system.silence import quiet
from fp4dit_onnx.tokenizer_files import copy_tokenizer

_NAMES = """
    pixart-alpha-256 pixart-alpha-512 pixart-alpha-1024-ms
    pixart-sigma-512 pixart-sigma-1024-ms pixart-sigma-2k-ms
    hunyuan-dit-1.1 hunyuan-dit-1.2 dit-xl-2-256 dit-xl-2-512 sana-1600m
    sd3-medium sd3.5-medium sd3.5-large flux-dev flux-schnell auraflow
    z-image flux2-klein-4b lumina2
"""
MODELS = tuple(_NAMES.split())


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the twin of a model, once; not to be changed."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("twin") / name
            tool.make(name, made[name], twin=True)
        return made[name]

    return get


def stored(folder: Path) -> dict[str, Any]:
    """The tensors of all weight files of a component."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return config


@pytest.mark.parametrize("name", MODELS)
def test_twins_are_pipelines_whose_transformers_work(
    twin: Callable[[str], Path], name: str
) -> None:
    import diffusers

    folder = twin(name)
    checkpoint = open_checkpoint(folder)
    config = checkpoint.transformer_config
    with quiet():
        cls = getattr(diffusers, checkpoint.transformer_class)
        network, info = cls.from_pretrained(folder / "transformer", output_loading_info=True)
    assert not any(info.values())
    given = {"timestep": torch.tensor([0.5 if "flux" in name else 500.0])}
    size = config.get("sample_size", 8)
    given["hidden_states"] = normal(1, config["in_channels"], size, size)
    given |= inputs(cls.__name__.partition("Transformer")[0].removesuffix("DiT2DModel"), config)
    if "x" in given:  # under names of its own, in lists
        del given["timestep"], given["hidden_states"]
    with torch.no_grad(), quiet():
        (found,) = network.eval()(**given, return_dict=False)
    found = found[0] if isinstance(found, list) else found
    assert torch.isfinite(found).all()
    assert 0.1 < found.std() < 30


FREE = {"use_resolution_binning": False}
DRAWN = (
    ("pixart-alpha-512", FREE, 64),
    ("pixart-alpha-1024-ms", {**FREE, "height": 128, "width": 128}, 128),
    ("hunyuan-dit-1.1", FREE, 128),
    ("hunyuan-dit-1.2", FREE, 128),
    ("dit-xl-2-256", {}, 64),
    ("sd3.5-medium", {}, 128),
    ("flux-dev", {"height": 64, "width": 64}, 64),
)


@pytest.mark.parametrize(("name", "options", "pixels"), DRAWN)
def test_twins_draw(
    twin: Callable[[str], Path], name: str, options: Mapping[str, Any], pixels: int
) -> None:
    import diffusers

    with quiet():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(twin(name), local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        if name == "pixart-alpha-1024-ms":  # only then the pipeline gives the micro-conditions
            pipeline.transformer.register_to_config(sample_size=128)
        subject = {"class_labels": [7]} if "dit-xl" in name else {"prompt": "a red apple"}
        picture = pipeline(
            **subject,
            **options,
            num_inference_steps=2,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images
    assert picture.shape == (1, pixels, pixels, 3)
    assert np.isfinite(picture).all()
    assert picture.std() > 0.05


def test_text_encoders_load_whole(twin: Callable[[str], Path]) -> None:
    import transformers

    for name in ("hunyuan-dit-1.1", "sd3.5-medium", "flux-dev", "auraflow", "lumina2"):
        for folder in sorted(twin(name).glob("text_encoder*")):
            cls = getattr(transformers, config_of(folder)["architectures"][0])
            with quiet():
                _, info = cls.from_pretrained(folder, output_loading_info=True)
            assert not any(info.values()), f"{name} {folder.name}"
    names = stored(twin("hunyuan-dit-1.1") / "text_encoder_2").keys()
    assert names & {"shared.weight", "encoder.embed_tokens.weight"} == {"shared.weight"}


PUBLISHED = {
    "hunyuan-dit-1.1": (["vocab.txt"], ["spiece.model"]),
    "sd3.5-medium": (
        ["merges.txt", "vocab.json"],
        ["merges.txt", "vocab.json"],
        ["spiece.model", "tokenizer.json"],
    ),
    "pixart-sigma-512": (["spiece.model"],),
}


def test_files_are_the_published_ones(twin: Callable[[str], Path]) -> None:
    for name, expected in PUBLISHED.items():
        folders = sorted(twin(name).glob("tokenizer*"))
        settings = ["special_tokens_map.json", "tokenizer_config.json"]
        found = [sorted(path.name for path in folder.iterdir()) for folder in folders]
        assert found == [sorted([*files, *settings]) for files in expected]
    index = json.loads((twin("sd3.5-medium") / "model_index.json").read_text())
    shards = twin("pixart-sigma-512") / "text_encoder"
    assert len(list(shards.glob("model-0000?-of-00002.safetensors"))) == 2
    assert (shards / "model.safetensors.index.json").is_file()
    assert index["image_encoder"] == index["feature_extractor"] == [None, None]


def test_tokenizers_are_read_by_transformers_and_alone(
    twin: Callable[[str], Path], tmp_path: Path
) -> None:
    import transformers

    texts = ("a red apple's, Größe 42", "", "一个宇航员在骑马 zzz", "Photo OF a cat")
    for name in ("hunyuan-dit-1.1", "sd3.5-medium"):
        index = json.loads((twin(name) / "model_index.json").read_text())
        for folder in sorted(twin(name).glob("tokenizer*")):
            with quiet():
                cls = getattr(transformers, index[folder.name][1])
                tokenizer = cls.from_pretrained(folder)
            copy_tokenizer(folder, index[folder.name][1], tmp_path / name / folder.name)
            alone = Tokenizer.from_file(str(tmp_path / name / folder.name / "tokenizer.json"))
            for text in texts:
                assert tokenizer(text).input_ids == alone.encode(text).ids, folder
            long = tokenizer(texts[0], padding="max_length", max_length=40).input_ids
            assert set(long[-3:]) == {tokenizer.pad_token_id}


def test_shards_and_their_index(tmp_path: Path) -> None:
    import diffusers
    import transformers

    tool.make("pixart-alpha-512", tmp_path / "whole", twin=True, shard_bytes=2**40)
    tool.make("pixart-alpha-512", tmp_path / "split", twin=True, shard_bytes=400_000)
    for part, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        whole, split = tmp_path / "whole" / part, tmp_path / "split" / part
        assert [p.name for p in whole.glob("*.safetensors*")] == [f"{stem}.safetensors"]
        index = json.loads((split / f"{stem}.safetensors.index.json").read_text())
        shards = sorted(p.name for p in split.glob("*.safetensors"))
        assert shards == sorted(set(index["weight_map"].values()))
        assert shards[0] == f"{stem}-00001-of-{len(shards):05d}.safetensors"
        assert len(shards) > 1
        expected, found = stored(whole), stored(split)
        assert expected.keys() == found.keys() == index["weight_map"].keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    assert open_checkpoint(tmp_path / "split").tensors
    with quiet():
        diffusers.PixArtTransformer2DModel.from_pretrained(tmp_path / "split" / "transformer")
        transformers.T5EncoderModel.from_pretrained(tmp_path / "split" / "text_encoder")


@pytest.mark.parametrize(
    ("name", "part", "billions"),
    [
        ("pixart-alpha-512", "transformer", 0.611),
        ("pixart-alpha-512", "text_encoder", 4.762),
        ("hunyuan-dit-1.2", "transformer", 1.500),
        ("hunyuan-dit-1.2", "text_encoder", 0.352),
        ("hunyuan-dit-1.2", "text_encoder_2", 1.670),
        ("dit-xl-2-256", "transformer", 0.675),
        ("sana-1600m", "transformer", 1.604),
        ("sd3-medium", "transformer", 2.028),
        ("sd3.5-large", "transformer", 8.057),
        ("flux-dev", "transformer", 11.901),
    ],
)
def test_official_sizes(name: str, part: str, billions: float) -> None:
    tensors = tool.describe(tool.MODELS[name].parts[part], twin=False).tensors
    total = sum(tensor.size for tensor in tensors if tensor.kind != "grid")
    copies = sum(tensor.size for tensor in tensors if ".norm1.emb." in tensor.name)  # DiT's
    assert (total - copies * 27 / 28) / 1e9 == pytest.approx(billions, abs=5e-4)


def test_embedders_of_dit_are_copies(twin: Callable[[str], Path]) -> None:
    tensors = stored(twin("dit-xl-2-256") / "transformer")
    for name in ("norm1.emb.class_embedder.embedding_table.weight", "attn1.to_q.weight"):
        first, second = (tensors[f"transformer_blocks.{i}.{name}"] for i in (0, 1))
        assert torch.equal(first, second) == ("emb" in name)


def test_positions_are_as_diffusers_computes_them(twin: Callable[[str], Path]) -> None:
    import diffusers

    folder = twin("sd3.5-medium") / "transformer"
    values = {k: v for k, v in config_of(folder).items() if not k.startswith("_")}
    with quiet():
        expected = diffusers.SD3Transformer2DModel(**values).pos_embed.pos_embed
    found = stored(folder)["pos_embed.pos_embed"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    name, part = "hunyuan-dit-1.2", "transformer"
    tool.make(name, tmp_path / "a", twin=True, seed=3)
    tool.make(name, tmp_path / "b", twin=True, seed=3)
    tool.make(name, tmp_path / "c", twin=True, seed=4, components=[part])
    tool.make(name, tmp_path / "d", twin=True, seed=3, dtype="bfloat16", components=[part])
    tool.make(name, tmp_path / "e", twin=True, seed=3, dtype="float16", components=[part])
    assert files(tmp_path / "a") == files(tmp_path / "b")
    first, other, short, half = (stored(tmp_path / x / part) for x in "acde")
    for key, value in first.items():
        assert not torch.equal(value, other[key])
        assert torch.equal(value.to(torch.bfloat16), short[key])
        assert torch.equal(value.to(torch.float16), half[key])
    assert "vae" not in (tmp_path / "c" / "model_index.json").read_text()
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["model_index.json", part]


def test_weights_spread_as_trained_ones() -> None:
    weights = sys.modules[tool.Drawer.__module__]
    drawer = tool.Drawer(1, "transformer")

    def draw(kind: str, *shape: int) -> Any:
        tensor = weights.Tensor(f"{kind}{shape}", shape, kind)
        return np.concatenate([p.ravel() for p in drawer.pieces(tensor)]).reshape(shape)

    for shape in ((640, 300), (1300, 1000), (6400, 1000)):  # the last two are cut from the pool
        matrix = draw("matrix", *shape)
        rows = np.log(matrix.std(axis=1) * np.sqrt(shape[1]))
        assert np.median(rows) == pytest.approx(0, abs=0.05)
        assert np.median(abs(rows)) == pytest.approx(0.674 * 0.3, rel=0.15)
        outliers = (rows > np.log(4) - 0.5).sum()
        assert shape[0] / 128 * 0.5 < outliers < shape[0] / 128 * 2.5
        assert abs(np.corrcoef(matrix[:64])[np.triu_indices(64, 1)]).max() < 0.35
    assert draw("matrix", 8, 3, 4, 4).std() == pytest.approx(48**-0.5, rel=0.4)
    assert draw("norm", 5000).mean() == pytest.approx(1, abs=0.01)
    assert draw("norm", 5000).std() == pytest.approx(0.1, rel=0.1)
    assert draw("bias", 5000).std() == pytest.approx(0.02, rel=0.1)
    assert draw("embedding", 50, 100).std() == pytest.approx(1, rel=0.1)
    assert draw("table", 6, 100).std() == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize("name", ["pixart-alpha-512", "dit-xl-2-256"])
def test_class_names_of_older_files(tmp_path: Path, name: str) -> None:
    import diffusers

    tool.make(name, tmp_path / "old", twin=True, legacy=True, components=["transformer"])
    index = json.loads((tmp_path / "old" / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "Transformer2DModel"]
    assert config_of(tmp_path / "old" / "transformer")["_class_name"] == "Transformer2DModel"
    with quiet():
        network = diffusers.Transformer2DModel.from_pretrained(tmp_path / "old" / "transformer")
    assert type(network).__name__ == tool.MODELS[name].parts["transformer"].class_name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pixart"], "no model 'pixart': expected one of pixart-alpha-256, pixart-alpha-512"),
        (["flux-dev", "--dtype", "int8"], "no type 'int8': expected one of float32"),
        (["flux-dev", "--seed", "-1"], "seed -1: expected 0 or more"),
        (["flux-dev", "--shard-bytes", "0"], "shards of 0 bytes: expected at least 1"),
        (["dit-xl-2-256", "--components", "vae,unet"], "found 'unet', expected some of scheduler"),
        (["dit-xl-2-256", "--components", ""], "expected some of scheduler, transformer, vae"),
    ],
)
def test_bad_requests_are_refused(
    tmp_path: Path, run: Run, arguments: list[str], words: str
) -> None:
    run(*arguments, "--twin", "-o", tmp_path / "new", main=tool.main).refuses(words)
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    for target in (tmp_path, tmp_path / "mine.txt", tmp_path / "absent" / "new"):
        with pytest.raises(UsageError, match=r"is not an empty folder|is not a folder"):
            tool.make("dit-xl-2-256", target, twin=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(tool, "_write_index", fail)
        with pytest.raises(OSError, match="the disk is full"):
            tool.make("dit-xl-2-256", tmp_path / "new", twin=True)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tool.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UsageError, match=r"needs [\d,]+ bytes and 1,000 are free"):
        tool.make("dit-xl-2-256", tmp_path / "new", twin=True)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool.main(["--list"])
    listed = capsys.readouterr().out.splitlines()
    assert tuple(line.split()[0] for line in listed) == MODELS == tuple(tool.MODELS)
    target = tmp_path / "new"
    target.mkdir()
    tool.main(["dit-xl-2-256", "-o", str(target), "--twin", "--components", "scheduler,vae"])
    assert sorted(p.name for p in target.iterdir()) == ["model_index.json", "scheduler", "vae"]
    assert "vae: AutoencoderKL" in capsys.readouterr().err
