"""Metrics: values by hand, and whether a learned metric is found absent or present, offline."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import socket
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fp4dit_onnx.evaluation import learned_metrics
from fp4dit_onnx.evaluation.learned_metrics import (
    load_clip_score,
    load_hps_v2,
    load_image_reward,
    load_lpips,
    offline,
)
from fp4dit_onnx.evaluation.metrics import METRICS, Score, psnr, sqnr, ssim
from fp4dit_onnx.system.silence import quiet

LOADERS = [load_lpips, load_clip_score, load_image_reward, load_hps_v2]


def noise(seed: int, shape: tuple[int, ...] = (14, 17, 3)) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_psnr_by_hand() -> None:
    a = np.zeros((4, 4, 3), np.uint8)
    # One rounding each in the division and the logarithm: a few 1e-16 of 20 .. 70 dB.
    assert psnr(a, a + np.uint8(255)) == pytest.approx(0, abs=1e-13)
    assert psnr(a, a + np.uint8(1)) == pytest.approx(20 * math.log10(255), abs=1e-13)
    one = a.copy()
    one[0, 0, 0] = 1
    assert psnr(a, one) == pytest.approx(20 * math.log10(255) + 10 * math.log10(48), abs=1e-13)
    assert psnr(one, a) == psnr(a, one)
    assert psnr(a, a) == psnr(a, one)  # finite: as close as different images can be


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_no_wraparound(measure: Any) -> None:
    low, high = np.full((11, 11, 3), 1, np.uint8), np.full((11, 11, 3), 255, np.uint8)
    assert measure(low, high) < 1


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize(
    "other", [np.zeros((11, 12, 3), np.uint8), np.zeros((11, 11, 3), np.float32), np.zeros(())]
)
def test_refuses_what_is_no_pair(measure: Any, other: Any) -> None:
    with pytest.raises(ValueError, match="expected uint8 of one shape"):
        measure(np.zeros((11, 11, 3), np.uint8), other)


def test_score_by_hand() -> None:
    score = Score.of([1.0, 2.0, 3.0, 6.0])
    assert score.mean == 3
    # Squares of -2, -1, 0, 3 sum to 14: sqrt(14 / 3) / sqrt(4), up to two roundings.
    assert score.standard_error == pytest.approx(math.sqrt(14 / 12), abs=1e-15)
    assert score.values == (1, 2, 3, 6)
    assert Score.of([5.0]) == Score(5.0, None, (5.0,))


def ssim_by_windows(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Wang et al. 2004 as written: weighted moments about the mean, one window at a time."""
    distance = np.hypot(*np.mgrid[-5:6, -5:6])
    weight = np.exp(-(distance**2) / (2 * 1.5**2))
    weight /= weight.sum()
    a, b = (np.pad(m, ((5, 5), (5, 5), (0, 0)), mode="reflect") for m in (a, b))
    found = []
    for y, x, channel in np.ndindex(a.shape[0] - 10, a.shape[1] - 10, 3):
        p, q = (m[y : y + 11, x : x + 11, channel].astype(np.float64) for m in (a, b))
        mean_p, mean_q = (weight * p).sum(), (weight * q).sum()
        var_p, var_q = (weight * (p - mean_p) ** 2).sum(), (weight * (q - mean_q) ** 2).sum()
        covariance = (weight * (p - mean_p) * (q - mean_q)).sum()
        luminance = (2 * mean_p * mean_q + 2.55**2) / (mean_p**2 + mean_q**2 + 2.55**2)
        found.append(luminance * (2 * covariance + 7.65**2) / (var_p + var_q + 7.65**2))
    return float(np.mean(found))


def test_ssim_is_that_of_the_paper() -> None:
    a = noise(0)
    near = np.clip(a.astype(np.int16) + noise(1) // 8, 0, 255).astype(np.uint8)
    for b in (near, noise(2), 255 - a):
        # Float64 on sums of 121 squares below 2^16, variances of thousands: 1e-10 leaves room.
        assert ssim(a, b) == pytest.approx(ssim_by_windows(a, b), abs=1e-10)
    assert ssim(a, near) > 0.9 > ssim(a, noise(2)) > ssim(a, 255 - a)


def test_ssim_of_a_picture_with_itself_and_shifted() -> None:
    a = noise(3, (32, 32, 3))
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert ssim(a, np.roll(a, 1, axis=1)) < 0.5
    assert ssim(a, np.roll(a, 1, axis=0)) < 0.5


def test_ssim_is_that_of_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("torchmetrics.functional.image")
    a, b = noise(4, (20, 32, 3)), noise(5, (20, 32, 3)) // 2
    one, two = (torch.from_numpy(m.astype(np.float64)).permute(2, 0, 1)[None] for m in (a, b))
    theirs = float(package.structural_similarity_index_measure(one, two, data_range=255.0))
    assert ssim(a, b) == pytest.approx(theirs, abs=1e-6)  # its window is float32


@pytest.mark.parametrize("shape", [(5, 6, 3), (6, 5, 3), (6, 6)])
def test_ssim_refuses_what_cannot_be_reflected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 6 pixels"):
        ssim(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))


def test_sqnr_by_hand() -> None:
    signal = np.float32([[3, 4], [0, 0]])
    assert sqnr(signal, signal + np.float32(0.5)) == pytest.approx(10 * math.log10(25), abs=1e-13)
    assert sqnr(signal, signal * 2) == 0
    assert sqnr(signal, -signal) == pytest.approx(-20 * math.log10(2), abs=1e-13)


def test_sqnr_is_finite_at_both_ends() -> None:
    ones = np.ones(1024, np.float32)
    limit = 10 * math.log10(2.0**56)
    assert sqnr(ones, ones) == limit
    nearly = ones.copy()
    nearly[7] += np.float32(2.0**-23)  # the closest other array above
    assert sqnr(ones, nearly) == pytest.approx(limit, abs=1e-12)
    assert sqnr(ones * 0, ones) == -limit
    assert sqnr(ones * 0, ones * 0) == limit


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (np.ones(3), "expected one shape"),
        (np.array([1, np.nan]), "not finite"),
        (np.array([1, np.inf]), "not finite"),
    ],
)
def test_sqnr_refuses(other: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sqnr(np.ones(2), other)


def test_table_of_metrics() -> None:
    assert list(METRICS) == ["psnr", "ssim", "lpips", "clip_score", "image_reward", "hps_v2"]
    assert all(name == metric.name for name, metric in METRICS.items())
    assert [n for n, m in METRICS.items() if not m.larger_is_better] == ["lpips"]
    assert METRICS["psnr"].load() is psnr
    assert METRICS["ssim"].load() is ssim


# ---- presence and absence of the learned ones


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home folder with empty caches."""
    constants = pytest.importorskip("huggingface_hub.constants")
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return tmp_path


def install(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """A module of that name that can be found and imported."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def uninstall(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name in names else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)


def in_hub(home: Path, repository: str, *files: str) -> Path:
    """The folder of a model in the hub's cache, with empty `files`."""
    stored = home / "hub" / f"models--{repository.replace('/', '--')}"
    folder = stored / "snapshots" / "1"
    folder.mkdir(parents=True)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("1")
    for file in files:
        (folder / file).touch()
    return folder


@pytest.mark.parametrize(
    ("loader", "module", "command"),
    [
        (load_lpips, "torch", "fp4dit-onnx[export]"),
        (load_lpips, "torchmetrics", "fp4dit-onnx[evaluate]"),
        (load_lpips, "torchvision", "pip install torchvision"),
        (load_clip_score, "transformers", "fp4dit-onnx[export]"),
        (load_clip_score, "huggingface_hub", "fp4dit-onnx[export]"),
        (load_image_reward, "ImageReward", "pip install image-reward"),
        (load_hps_v2, "hpsv2", "pip install hpsv2"),
    ],
)
def test_absent_without_its_package(
    monkeypatch: pytest.MonkeyPatch, home: Path, loader: Any, module: str, command: str
) -> None:
    for name in learned_metrics.INSTALL:
        if importlib.util.find_spec(name) is None:
            install(monkeypatch, name)
    uninstall(monkeypatch, module)
    reason = loader()
    assert isinstance(reason, str)
    assert f"{module} is not installed" in reason
    assert command in reason


def fetching() -> Any:
    raise AssertionError("built without weights")


WEIGHTS = SimpleNamespace(DEFAULT=SimpleNamespace(url="https://host/models/alex-1.pth?x=1"))


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, network: Any) -> None:
    install(monkeypatch, "torchvision")
    install(monkeypatch, "torchvision.models", AlexNet_Weights=WEIGHTS)
    install(monkeypatch, "torchmetrics")
    install(
        monkeypatch,
        "torchmetrics.image.lpip",
        LearnedPerceptualImagePatchSimilarity=network,
    )


def test_absent_without_its_weights(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    fake_torchvision(monkeypatch, lambda **_: fetching())
    install(monkeypatch, "ImageReward", load=lambda *_, **__: fetching())
    install(monkeypatch, "hpsv2", score=lambda *_, **__: fetching())
    assert f"expected {home}/torch/checkpoints/alex-1.pth" in str(load_lpips())
    assert learned_metrics.CLIP in str(load_clip_score())
    assert f"expected {home}/.cache/ImageReward/ImageReward.pt" in str(load_image_reward())
    assert learned_metrics.HPS in str(load_hps_v2())
    in_hub(home, learned_metrics.HPS, learned_metrics.HPS_WEIGHTS)  # the backbone is still missing
    assert learned_metrics.HPS_BACKBONE in str(load_hps_v2())
    folder = home / ".cache" / "ImageReward"
    folder.mkdir(parents=True)
    (folder / "ImageReward.pt").touch()
    assert "med_config.json" in str(load_image_reward())
    (folder / "med_config.json").touch()
    assert learned_metrics.BERT in str(load_image_reward())


def test_lpips_is_given_both_pictures(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    options: list[Any] = []

    def network(**given: Any) -> Any:
        options.append(given)
        return lambda a, b: (a - 2 * b).sum() if a.shape == (1, 3, 2, 4) else None

    fake_torchvision(monkeypatch, network)
    (home / "torch" / "checkpoints").mkdir(parents=True)
    (home / "torch" / "checkpoints" / "alex-1.pth").touch()
    measure: Any = load_lpips()
    picture, reference = np.full((2, 4, 3), 255, np.uint8), np.full((2, 4, 3), 51, np.uint8)
    assert measure(picture, reference) == pytest.approx(24 * (1 - 2 * 0.2), abs=1e-5)
    assert measure(picture, picture) == pytest.approx(-24, abs=1e-5)
    assert options == [{"net_type": "alex", "normalize": True}]  # built once


def test_image_reward_is_built_from_local_files(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    folder = home / ".cache" / "ImageReward"
    folder.mkdir(parents=True)
    for name in ("ImageReward.pt", "med_config.json"):
        (folder / name).touch()
    in_hub(home, learned_metrics.BERT, "vocab.txt")
    given: list[Any] = []

    def load(name: str, **options: Any) -> Any:
        given.append((name, options))
        return SimpleNamespace(score=lambda prompt, image: len(prompt) + image.getpixel((0, 0))[0])

    install(monkeypatch, "ImageReward", load=load)
    measure: Any = load_image_reward()
    assert measure(np.full((2, 2, 3), 7, np.uint8), "bat") == 10
    assert given == [
        (str(folder / "ImageReward.pt"), {"device": "cpu", "download_root": str(folder)})
    ]


def test_hps_v2_is_asked_for_its_version(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    in_hub(home, learned_metrics.HPS, learned_metrics.HPS_WEIGHTS)
    in_hub(home, learned_metrics.HPS_BACKBONE, learned_metrics.HPS_BACKBONE_WEIGHTS[1])

    def score(images: list[Image.Image], prompt: str, hps_version: str) -> list[np.float32]:
        assert hps_version == "v2.1"
        return [np.float32(len(prompt) + image.size[0]) for image in images]

    install(monkeypatch, "hpsv2", score=score)
    measure: Any = load_hps_v2()
    assert measure(np.zeros((2, 5, 3), np.uint8), "bat") == 8


def tiny_clip(folder: Path) -> None:
    """A CLIP of random weights, as transformers stores it."""
    import torch
    import transformers

    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    layers |= {"num_attention_heads": 2}
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(words) - 1
    text = {**layers, "vocab_size": end + 1, "bos_token_id": end - 1, "eos_token_id": end}
    text |= {"pad_token_id": end, "max_position_embeddings": 16}
    vision = {**layers, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    marks = {"unk_token": words[-1], "bos_token": words[-2], "eos_token": words[-1]}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": words[-1]}))
    image = {"image_processor_type": "CLIPImageProcessor", "crop_size": 8}
    image |= {"size": {"shortest_edge": 8}, "do_rescale": True, "do_normalize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))


def test_clip_score_of_a_tiny_model(home: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = importlib.import_module("torch")
    folder = in_hub(home, learned_metrics.CLIP)
    with quiet():
        tiny_clip(folder)
    with offline(), quiet():
        measure: Any = load_clip_score()
        picture = noise(6, (8, 8, 3))
        scores = [measure(picture, prompt) for prompt in ("bat", "chipmunk", "x " * 100)]
    with quiet(), torch.no_grad():
        model = transformers.CLIPModel.from_pretrained(folder)
        pixels = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
        ids = torch.tensor([[52, 1, 0, 45, 53]])  # start, b, a, t</w>, end
        found = model(input_ids=ids, pixel_values=pixels)
        cosine = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
    assert float(cosine) > 0  # else the score is cut to 0 and shows nothing
    assert scores[0] == pytest.approx(100 * float(cosine), abs=1e-3)  # float32 networks
    assert len(set(scores)) == 3


def test_offline_refuses_every_host_and_restores() -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    before = (socket.getaddrinfo, constants.HF_HUB_OFFLINE)
    with offline():
        assert constants.is_offline_mode()
        with pytest.raises(OSError, match="no connection"):
            socket.create_connection(("example.org", 80), timeout=1)
    assert (socket.getaddrinfo, constants.HF_HUB_OFFLINE) == before
    with pytest.raises(ZeroDivisionError), offline():
        math.floor(1 / 0)
    assert (socket.getaddrinfo, constants.HF_HUB_OFFLINE) == before


def test_loaders_here_give_a_function_or_a_reason() -> None:
    with offline(), quiet():
        found = [loader() for loader in LOADERS]
    assert all(callable(each) or (isinstance(each, str) and each) for each in found)
