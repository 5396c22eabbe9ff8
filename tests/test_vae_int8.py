"""The tool that quantizes a VAE decoder: whose latents it takes, and what its rows say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

import vae_int8 as tool

from fp4dit_onnx.runtime.pipeline import Pipeline


def test_int8_is_nearer_where_more_stays_in_float(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "ENDS", ((0, 0), (3, 9), (20, 20)))
    tool.main([str(bundle), "--images", "2", "--size", "32", "--noise", "--json"])
    whole, most = json.loads(capsys.readouterr().out)
    assert whole["quantized"] == whole["convolutions"] == most["quantized"] + 12
    assert 10 < whole["psnr_db"] < most["psnr_db"] - 3 < 80
    assert whole["sqnr_db"] < whole["psnr_db"]
    assert whole["bytes"] < most["bytes"]


def test_latents_are_those_that_the_decoder_is_given(bundle: Path) -> None:
    pipeline = Pipeline(bundle, threads=1)
    decoder = pipeline.vae_decoder
    latents = tool.latents_of(pipeline, 2, None, noise=False)
    assert pipeline.vae_decoder is decoder
    prompts = pipeline.example_prompts()[:2]
    wanted: Any = pipeline.generate(prompts, seeds=[0, 1])
    for latent, image in zip(latents, wanted, strict=True):
        assert latent.shape == (1, 4, 16, 16)
        pixels = tool.np.asarray(image) / 127.5 - 1
        (found,) = decoder.run(None, {"latent_sample": latent})
        assert abs(found[0].transpose(1, 2, 0).clip(-1, 1) - pixels).max() < 0.01


def test_one_image_is_too_few(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        tool.main([str(bundle), "--images", "1", "--noise"])
    assert left.value.code == 2
    assert "expected at least 2" in capsys.readouterr().err
