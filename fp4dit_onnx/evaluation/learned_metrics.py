"""Loaders of the learned metrics: the function, or the reason why it is absent.

Packages and weights are looked for on this machine alone, before anything is imported or built.
Call loaders and functions inside `offline`: some of the packages fetch files by themselves.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["load_clip_score", "load_hps_v2", "load_image_reward", "load_lpips", "offline"]

Pixels = npt.NDArray[np.uint8]
OfPair = Callable[[Pixels, Pixels], float]
OfPrompt = Callable[[Pixels, str], float]

CLIP = "openai/clip-vit-large-patch14"
CLIP_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HPS, HPS_VERSION, HPS_WEIGHTS = "xswu/HPSv2", "v2.1", "HPS_v2.1_compressed.pt"
HPS_BACKBONE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
HPS_BACKBONE_WEIGHTS = ("open_clip_pytorch_model.bin", "open_clip_model.safetensors")
BERT = "bert-base-uncased"
"""Whose tokenizer ImageReward takes."""

INSTALL = {
    "torch": "'fp4dit-onnx[export]'",
    "transformers": "'fp4dit-onnx[export]'",
    "torchmetrics": "'fp4dit-onnx[evaluate]'",
    "torchvision": "torchvision",
    "ImageReward": "image-reward",
    "hpsv2": "hpsv2",
}
"""Module -> what pip installs it as."""


@contextmanager
def offline() -> Iterator[None]:
    """Meanwhile the hub's client keeps to its cache, and looking up any host fails."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("evaluation makes no connection: it takes what is on this machine")

    with ExitStack() as stack:
        # Some packages fetch with other means, and already when they are imported.
        stack.enter_context(_replaced(socket, "getaddrinfo", refuse))
        if importlib.util.find_spec("huggingface_hub") is not None:
            # The variable HF_HUB_OFFLINE is read at the first import alone.
            constants = importlib.import_module("huggingface_hub.constants")
            stack.enter_context(_replaced(constants, "HF_HUB_OFFLINE", True))
        yield


@contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


def load_lpips() -> OfPair | str:
    """LPIPS on AlexNet (Zhang et al. 2018) from torchmetrics, or why it is absent."""
    missing = _not_installed("torch", "torchmetrics", "torchvision")
    if missing:
        return missing
    import torch

    url = importlib.import_module("torchvision.models").AlexNet_Weights.DEFAULT.url
    weights = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlsplit(url).path).name)
    if not weights.is_file():
        return f"weights not found: expected {weights}, from {url}"
    module = importlib.import_module("torchmetrics.image.lpip")
    network = module.LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)

    def measure(picture: Pixels, reference: Pixels) -> float:
        pair = np.stack([picture, reference]).astype(np.float32) / 255  # [2, H, W, 3]
        scaled = torch.from_numpy(pair).permute(0, 3, 1, 2)  # [2, 3, H, W]
        with torch.no_grad():
            return float(network(scaled[:1], scaled[1:]))

    return measure


def load_clip_score() -> OfPrompt | str:
    """100 max(cos, 0) of CLIP's image and text embeddings (Hessel et al. 2021), or why absent."""
    missing = _not_installed("torch", "transformers") or _not_cached(CLIP, *CLIP_WEIGHTS)
    if missing:
        return missing
    import torch
    from transformers import CLIPModel, CLIPProcessor

    model: Any = CLIPModel.from_pretrained(CLIP, local_files_only=True)
    processor: Any = CLIPProcessor.from_pretrained(CLIP, local_files_only=True)
    model.eval()

    def measure(picture: Pixels, prompt: str) -> float:
        feed = processor(
            text=[prompt],
            images=[Image.fromarray(picture)],
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        with torch.no_grad():
            found = model(**feed)  # the embeddings [1, D] have norm 1
        return 100 * max(float((found.image_embeds * found.text_embeds).sum()), 0.0)

    return measure


def load_image_reward() -> OfPrompt | str:
    """ImageReward v1.0 (Xu et al. 2023), or why it is absent."""
    folder = Path("~/.cache/ImageReward").expanduser()
    weights, config = folder / "ImageReward.pt", folder / "med_config.json"
    missing = _not_installed("torch", "ImageReward")
    if missing:
        return missing
    for path in (weights, config):
        if not path.is_file():
            return f"weights not found: expected {path}, from hf.co/THUDM/ImageReward"
    missing = _not_cached(BERT, "vocab.txt")
    if missing:
        return missing
    import torch

    package = importlib.import_module("ImageReward")
    model = package.load(str(weights), device="cpu", download_root=str(folder))

    def measure(picture: Pixels, prompt: str) -> float:
        with torch.no_grad():
            return float(model.score(prompt, Image.fromarray(picture)))

    return measure


def load_hps_v2() -> OfPrompt | str:
    """Human preference score v2.1 (Wu et al. 2023), or why it is absent."""
    missing = (
        _not_installed("torch", "hpsv2")
        or _not_cached(HPS, HPS_WEIGHTS)
        or _not_cached(HPS_BACKBONE, *HPS_BACKBONE_WEIGHTS)
    )
    if missing:
        return missing
    package = importlib.import_module("hpsv2")

    def measure(picture: Pixels, prompt: str) -> float:
        (score,) = package.score([Image.fromarray(picture)], prompt, hps_version=HPS_VERSION)
        return float(score)

    return measure


def _not_installed(*modules: str) -> str:
    """Which module is missing and how to get it; empty if none is."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: run  pip install {INSTALL[module]}"
    return ""


def _not_cached(repository: str, *names: str) -> str:
    """Why none of the files `names` is in the cache of Hugging Face's hub; empty if one is."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return "huggingface_hub is not installed: run  pip install 'fp4dit-onnx[export]'"
    hub = importlib.import_module("huggingface_hub")
    found = (hub.try_to_load_from_cache(repository, name) for name in names)
    if any(isinstance(path, str) and os.path.isfile(path) for path in found):
        return ""
    return f"weights not found: {repository} ({' or '.join(names)}) is not in the hub's cache"
