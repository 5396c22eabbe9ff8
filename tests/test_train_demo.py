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

from fp4dit_onnx.checkpoint.checkpoint import demo_folder

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
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        ours, theirs = (
            load_file(output / f"{part}.safetensors"),
            load_file(DEMO / f"{part}.safetensors"),
        )
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            np.testing.assert_array_equal(ours[name], tensor, err_msg=name)
    made, given = (
        json.loads((folder / "vae" / "config.json").read_text()) for folder in (output, DEMO)
    )
    assert made == {**given, "_name_or_path": made["_name_or_path"]}, "where it was read from"
    weights = load_file(output / "transformer" / "diffusion_pytorch_model.safetensors")
    weight = weights["transformer_blocks.3.ff.net.2.weight"].astype(np.float64)
    spread = weight / weight.std()
    assert abs((spread**4).mean() - 1.8) < 0.05, "not the kurtosis of a uniform distribution"
