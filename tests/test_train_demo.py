"""The training script of the demo pipeline, for a few steps on made-up emoji."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from fp4dit_onnx.calibration.sampling import decode, load_pipeline, sample_latents
from fp4dit_onnx.checkpoint.checkpoint import demo_folder
from fp4dit_onnx.exporting.plan import plan
from fp4dit_onnx.exporting.request import ExportRequest

ROOT = Path(__file__).resolve().parents[1]
DEMO = demo_folder()


@pytest.fixture
def emoji(tmp_path: Path) -> Path:
    """A data folder as the npm package has it: discs in 12 colours."""
    folder = tmp_path / "data"
    pictures = folder / "img" / "google" / "64"
    pictures.mkdir(parents=True)
    entries = []
    for i in range(12):
        picture = Image.new("RGBA", (64, 64))
        colour = (20 * i, 255 - 20 * i, 128, 255)
        ImageDraw.Draw(picture).ellipse((8, 8, 56, 56), fill=colour)
        picture.save(pictures / f"{i}.png")
        entries.append(
            {
                "image": f"{i}.png",
                "has_img_google": True,
                "name": f"DISC NUMBER {i}",
                "short_name": f"disc_{i}",
                "subcategory": "cat-face" if i % 2 else "flag",
                "category": "Smileys & Emotion",
            }
        )
    (folder / "emoji.json").write_text(json.dumps(entries))
    return folder


def train(emoji: Path, output: Path, *options: str | Path) -> None:
    command = [sys.executable, ROOT / "tools" / "train_demo.py", emoji, output, *options]
    done = subprocess.run([*command, "--steps", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_result_is_a_pipeline_that_draws(emoji: Path, tmp_path: Path) -> None:
    output = tmp_path / "pipeline"
    train(emoji, output, "--vae-steps", "1")
    code = f"""
import diffusers, numpy, torch
pipeline = diffusers.PixArtAlphaPipeline.from_pretrained({str(output)!r}).to(torch.float32)
pipeline.set_progress_bar_config(disable=True)
pictures = pipeline("disc", num_inference_steps=2, use_resolution_binning=False,
                    clean_caption=False, output_type="np").images
numpy.save({str(tmp_path / "drawn.npy")!r}, pictures)
"""
    drawn = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert drawn.returncode == 0, drawn.stderr
    pictures: Any = np.load(tmp_path / "drawn.npy")
    assert pictures.shape == (1, 64, 64, 3)
    assert np.isfinite(pictures).all()


def test_parts_of_a_pipeline_are_kept_beside_other_weights(emoji: Path, tmp_path: Path) -> None:
    output = tmp_path / "pipeline"
    train(emoji, output, "--parts", DEMO, "--first-weights", "uniform")
    for part in ("vae", "text_encoder", "tokenizer"):
        assert contents(output / part) == contents(DEMO / part)
    weights = load_file(output / "transformer" / "diffusion_pytorch_model.safetensors")
    weight = weights["transformer_blocks.3.ff.net.2.weight"].astype(np.float64)
    spread = weight / weight.std()
    assert abs((spread**4).mean() - 1.8) < 0.05, "not the kurtosis of a uniform distribution"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("family", "prompt", "kept"),
    [
        ("dit", "disc 3", {"vae": "vae"}),
        ("hunyuan", "disc", {"tokenizer_2": "tokenizer", "text_encoder_2": "text_encoder"}),
        ("sd3", "disc", {"vae": "vae"}),
    ],
)
def test_other_families_are_made_on_the_demos_parts(
    emoji: Path, tmp_path: Path, family: str, prompt: str, kept: dict[str, str]
) -> None:
    output = tmp_path / "pipeline"
    train(emoji, output, "--family", family, "--parts", DEMO, "--vae-steps", "1", "--batch", "2")
    for part, source in kept.items():
        assert contents(output / part) == contents(DEMO / source)
    made = plan(ExportRequest(model=output, output=tmp_path / "none", method="fp-rtn", steps=1))
    pipeline = load_pipeline(made.checkpoint)
    latents = sample_latents(pipeline, made.family, [prompt], [0], made.sampling)
    (picture,) = decode(pipeline, made.family, latents)
    assert picture.size == (64, 64)
    assert np.isfinite(latents.numpy()).all()


def test_only_the_demo_itself_is_trained_without_parts(emoji: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        ROOT / "tools" / "train_demo.py",
        emoji,
        tmp_path,
        "--family",
        "dit",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--family needs --parts" in done.stderr
