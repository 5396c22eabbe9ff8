"""A bundle's transformer inside diffusers' pipelines."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fp4dit_onnx.drop_in import load_transformer
from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.runtime import Pipeline, initial_latents
from fp4dit_onnx.system.silence import quiet

pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties' deprecations at import
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")


Array = npt.NDArray[Any]
Agree = Callable[[Array, Array, float], None]

PROMPTS = ("kissing cat face with closed eyes", "Chipmunk ")
SEEDS = (0, 7)

# The transformer is the same session on both sides; text encoders and schedulers differ by the
# rounding of float32. Measured: 2e-6.
BOUND = 1e-5


def load(folder: Path, **options: Any) -> Any:
    with quiet():
        pipe = diffusers.PixArtAlphaPipeline.from_pretrained(
            folder, torch_dtype=torch.float32, local_files_only=True, **options
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assigned(folder: Path, bundle: Path) -> Any:
    pipe = load(folder)
    pipe.transformer = load_transformer(bundle, library=False)
    return pipe


def assigned_to_nothing(folder: Path, bundle: Path) -> Any:
    pipe = load(folder, transformer=None)
    pipe.transformer = load_transformer(bundle, library=False)
    return pipe


def passed(folder: Path, bundle: Path) -> Any:
    return load(folder, transformer=load_transformer(bundle, library=False))


@pytest.mark.parametrize("place", [assigned, assigned_to_nothing, passed])
def test_diffusers_draws_as_our_pipeline(
    demo_folder: Path, bundle: Path, agree: Agree, place: Callable[[Path, Path], Any]
) -> None:
    pipe = place(demo_folder, bundle)
    noise = np.stack([initial_latents(seed, (4, 16, 16)) for seed in SEEDS])
    with quiet():
        result = pipe(
            prompt=list(PROMPTS),
            latents=torch.from_numpy(noise),
            num_inference_steps=20,
            guidance_scale=3.0,
            height=64,
            width=64,
            max_sequence_length=16,
            use_resolution_binning=False,
            clean_caption=False,
            output_type="latent",
        )
    ours = Pipeline(bundle, library=False)
    expected = ours.sample(PROMPTS, SEEDS, ours.settings())
    agree(result.images.numpy(), expected, BOUND)
    assert np.abs(result.images.numpy()[::-1] - expected).max() > 1000 * BOUND


@pytest.fixture
def network(bundle: Path) -> Any:
    """The transformer of the bundle with a graph that is a formula."""
    return load_transformer(bundle, library=False)


def arguments(**changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    given = {
        "hidden_states": torch.randn(2, 4, 16, 16, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, 128, generator=generator),
        "timestep": torch.tensor([999, 999]),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return given | changes


def test_it_looks_like_the_class_that_was_exported(network: Any, torch_pipeline: Any) -> None:
    original = torch_pipeline.transformer
    config = {k: v for k, v in original.config.items() if not k.startswith("_")}
    assert {k: network.config[k] for k in config} == config
    assert network.config.sample_size == network.config["sample_size"] == 16
    assert (network.dtype, network.device) == (torch.float32, torch.device("cpu"))
    assert network.inner_dim == original.inner_dim
    assert isinstance(network, torch.nn.Module)
    assert list(network.parameters()) == []
    with network.cache_context("cond"):
        found = network(**arguments())
    theirs = original(**arguments())
    assert type(found) is type(theirs)
    assert found.sample.shape == theirs.sample.shape


def test_outputs_come_as_the_class_gives_them(network: Any) -> None:
    right = network(**arguments()).sample
    given = arguments()
    positional = [given.pop(k) for k in ("hidden_states", "encoder_hidden_states", "timestep")]
    (found,) = network(*positional, **given, return_dict=False)
    assert torch.equal(found, right)
    hidden = given | {"hidden_states": positional[0].half(), "timestep": 999}
    half = network(**arguments(**hidden)).sample
    assert half.dtype == torch.float16
    assert 0 < (half.float() - right).abs().max() < 2e-3 * right.abs().max()
    mask = given["encoder_attention_mask"].bool()
    assert torch.equal(network(**arguments(encoder_attention_mask=mask)).sample, right)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_mask": torch.ones(2, 64)}, "attention_mask is given: expected nothing"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "scale is given"),
        ({"encoder_attention_mask": None}, "encoder_attention_mask is missing"),
        ({"encoder_attention_mask": torch.ones(2, 1, 5)}, "expected 2 dimensions"),
    ],
)
def test_arguments_that_the_graph_cannot_take(
    network: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        network(**arguments(**changes))


def test_arguments_that_say_nothing_are_ignored(network: Any) -> None:
    right = network(**arguments()).sample
    unused = {"resolution": torch.ones(2, 2), "aspect_ratio": torch.ones(2, 1)}
    silent = {"added_cond_kwargs": unused, "cross_attention_kwargs": {}, "attention_mask": None}
    assert torch.equal(network(**arguments(**silent)).sample, right)
    with pytest.raises(TypeError, match="controlnet"):
        network(**arguments(controlnet=None))


class Recorder:
    """A session of Hunyuan-DiT that keeps what it is fed."""

    def __init__(self) -> None:
        self.feed: dict[str, Array] = {}

    def get_inputs(self) -> list[Any]:
        """Rank and type of each."""
        ranks = {
            "hidden_states": 4,
            "timestep": 1,
            "encoder_hidden_states": 3,
            "text_embedding_mask": 2,
            "encoder_hidden_states_t5": 3,
            "text_embedding_mask_t5": 2,
            "image_meta_size": 2,
            "style": 1,
        }
        integers = ("text_embedding_mask", "text_embedding_mask_t5", "style")
        return [
            SimpleNamespace(
                name=name,
                shape=list("abcd"[:rank]),
                type="tensor(int64)" if name in integers else "tensor(float)",
            )
            for name, rank in ranks.items()
        ]

    def run(self, _: Any, feed: dict[str, Array]) -> list[Array]:
        """Twice the channels of the latents."""
        self.feed = feed
        return [np.concatenate([feed["hidden_states"]] * 2, axis=1)]


def test_hunyuan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "_class_name": "HunyuanDiT2DModel",
        "in_channels": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 24,
    }
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    recorder = Recorder()
    monkeypatch.setattr("fp4dit_onnx.drop_in.session", lambda *_, **__: recorder)
    network: Any = load_transformer(tmp_path)
    assert (network.inner_dim, network.num_heads) == (96, 4)
    assert network.config.text_len_t5 == 256  # diffusers' default
    feed = {
        "encoder_hidden_states": torch.zeros(2, 77, 8, dtype=torch.bfloat16),
        "text_embedding_mask": torch.ones(2, 77),
        "encoder_hidden_states_t5": torch.zeros(2, 256, 8),
        "text_embedding_mask_t5": torch.ones(2, 256, dtype=torch.int64),
        "image_meta_size": torch.zeros(2, 6, dtype=torch.float16),
        "style": torch.tensor([0, 0]),
        "image_rotary_emb": (torch.zeros(4, 24), torch.zeros(4, 24)),
    }
    hidden = torch.ones(2, 4, 4, 4, dtype=torch.bfloat16)
    (found,) = network(hidden, torch.tensor(5), **feed, return_dict=False)
    assert found.dtype == torch.bfloat16
    assert found.shape == (2, 8, 4, 4)
    assert recorder.feed["timestep"].tolist() == [5, 5]
    assert {v.dtype.name for v in recorder.feed.values()} == {"float32", "int64"}
    assert len(recorder.feed) == 8
    with pytest.raises(UsageError, match="controlnet_block_samples is given"):
        network(hidden, torch.tensor(5), **feed, controlnet_block_samples=(hidden,))
    with pytest.raises(UsageError, match="style is missing"):
        network(hidden, torch.tensor(5), **{k: v for k, v in feed.items() if k != "style"})


def test_only_the_transformer_is_read(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle / "transformer", tmp_path / "transformer")
    network = load_transformer(tmp_path, library=False)
    assert network(**arguments()).sample.shape == (2, 8, 16, 16)
    config = tmp_path / "transformer" / "config.json"
    config.write_text('{"_class_name": "NoSuchModel", "in_channels": 4}')
    with pytest.raises(BundleError, match="names the class NoSuchModel"):
        load_transformer(tmp_path, library=False)
    with pytest.raises(BundleError, match="not found"):
        load_transformer(tmp_path / "nowhere", library=False)
